"""Drives a host with the unmodified tritonclient over HTTP, JSON tensors. Argument: host:port."""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready()
assert client.get_server_metadata()["name"] == "modelhost"
assert client.is_model_ready("demo/echo") and client.is_model_ready("demo/echo", "1")
assert not client.is_model_ready("demo/nope")
metadata = client.get_model_metadata("demo/echo")
assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1]}], metadata


def infer(model, name, values, datatype, output, version=""):
    tensor = triton.InferInput(name, values.shape, datatype)
    tensor.set_data_from_numpy(values, binary_data=False)
    asked = [triton.InferRequestedOutput(output, binary_data=False)]
    return client.infer(model, [tensor], outputs=asked, model_version=version, request_id="r-1")


values = np.array([1.5, -0.25, 1e-30, 3e38], dtype=np.float32)
for version in ("", "1"):
    result = infer("demo/echo", "x", values, "FP32", "y", version)
    assert np.array_equal(result.as_numpy("y"), values)
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("demo/echo", "1", "r-1")

texts = np.array(["", "zwölf", 'quo"te'], dtype=np.object_)
result = infer("demo/text", "x", texts, "BYTES", "y").as_numpy("y")
assert [item if isinstance(item, str) else item.decode() for item in result] == list(texts), result

try:
    infer("demo/echo", "x", np.zeros(2, dtype=np.float64), "FP64", "y")
    raise AssertionError("FP64 was accepted")
except triton.InferenceServerException as error:
    assert 'input "x": datatype FP64 is not FP32' in error.message(), error.message()

# The real model: every held-out row, as the table that the signature describes.
example = Path(__file__).parents[2] / "examples" / "credit-risk"
rows = json.loads((example / "held-out.json").read_text())
expected = json.loads((example / "expected.json").read_text())["xgboost"]
try:
    import tomllib
except ImportError:
    tomllib = None
if tomllib:
    features = tomllib.loads((example / "xgboost" / "model.toml").read_text())["features"]
    code = lambda feature, value: feature["categories"].index(value) if "categories" in feature else value
    table = np.array([[code(feature, row[feature["name"]]) for feature in features] for row in rows], dtype=np.float32)
    came = infer("demo/credit", "input", table, "FP32", "probability").as_numpy("probability")
    assert np.abs(came - np.array(expected)).max() < 1e-6
print("tritonclient: all well")
