"use strict";
const { document: url } = document.getElementById("ui").dataset;
SwaggerUIBundle({ url, dom_id: "#ui", validatorUrl: null });
