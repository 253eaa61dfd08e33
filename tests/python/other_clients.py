"""Drives a host with the unmodified KServe and MLflow clients, and with TF Serving's documented examples.

Argument: host:port. The host serves demo/echo-<datatype> (input x [-1], output y [-1]) and demo/credit, which is its
default model.
"""

import asyncio
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pandas
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from mlflow.pyfunc.scoring_server.client import ScoringServerClient

ADDRESS = sys.argv[1]
URL = f"http://{ADDRESS}"
EXAMPLE = Path(__file__).parents[2] / "examples" / "credit-risk"
ROWS = json.loads((EXAMPLE / "held-out.json").read_text())
EXPECTED = np.array(json.loads((EXAMPLE / "expected.json").read_text())["xgboost"])


def right(probabilities):
    assert np.abs(np.array(probabilities) - EXPECTED).max() < 1e-6


async def kserve_rest():
    for protocol in ("v1", "v2"):
        client = InferenceRESTClient(RESTConfig(protocol=protocol))
        assert await client.is_server_live(URL)
        assert await client.is_model_ready(URL, "demo/credit")
        if protocol == "v2":
            assert await client.is_server_ready(URL)
        await client.close()
    client = InferenceRESTClient(RESTConfig(protocol="v1"))
    answer = await client.infer(URL, {"instances": ROWS}, model_name="demo/credit")
    right(answer["predictions"])
    try:
        await client.infer(URL, {"instances": [{"height": 1}]}, model_name="demo/credit")
        raise AssertionError("an unknown field was accepted")
    except Exception as error:
        assert "400" in str(error) and "height" in str(error), error
    await client.close()

    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    values = np.array([1.5, -2, 1e30], dtype=np.float32)
    for binary in (False, True):
        tensor = InferInput("x", [3], "FP32")
        tensor.set_data_from_numpy(values, binary_data=binary)
        request = InferRequest("demo/echo-FP32", [tensor], request_id="r-1")
        answer = await client.infer(URL, request, model_name="demo/echo-FP32")
        assert answer.id == "r-1" and np.array_equal(answer.outputs[0].as_numpy(), values), answer
    await client.close()


async def kserve_grpc():
    client = InferenceGRPCClient(ADDRESS)
    assert await client.is_server_live() and await client.is_server_ready()
    assert await client.is_model_ready("demo/echo-INT64")
    values = np.array([-(2**63), 2**63 - 1], dtype=np.int64)
    for binary in (False, True):
        tensor = InferInput("x", [2], "INT64")
        tensor.set_data_from_numpy(values, binary_data=binary)
        answer = await client.infer(InferRequest("demo/echo-INT64", [tensor], request_id="r-1"))
        assert answer.id == "r-1" and np.array_equal(answer.outputs[0].as_numpy(), values), answer
    await client.close()


def mlflow():
    host, port = ADDRESS.split(":")
    client = ScoringServerClient(host, int(port))
    client.wait_server_ready(timeout=10)
    assert client.get_version()
    frame = pandas.DataFrame(ROWS)
    right(client.invoke(frame).get_predictions()["probability"])
    right([row["probability"] for row in post("/invocations", {"dataframe_records": ROWS})["predictions"]])
    csv = request("/models/demo/credit/invocations", frame.to_csv(index=False).encode(), "text/csv")
    right([row["probability"] for row in json.loads(csv)["predictions"]])
    json_type = "application/json"
    for body, kind, status in [(b"[]", json_type, 400), (b"{}", "text/plain", 415), (b"{}", json_type, 400)]:
        try:
            request("/invocations", body, kind)
            raise AssertionError(f"{body} was accepted")
        except urllib.error.HTTPError as error:
            assert error.code == status, error
    try:
        client.invoke(pandas.DataFrame([{"height": 1}]))
        raise AssertionError("an unknown column was accepted")
    except Exception as error:
        assert "BAD_REQUEST" in str(error) and "height" in str(error), error


def request(path, body, kind="application/json"):
    call = urllib.request.Request(URL + path, data=body, headers={"Content-Type": kind})
    with urllib.request.urlopen(call) as response:
        return response.read()


def post(path, body):
    return json.loads(request(path, json.dumps(body).encode()))


def get(path):
    with urllib.request.urlopen(URL + path) as response:
        return json.loads(response.read())


def tf_serving():
    """The requests of TF Serving's api_rest.md, sent to echo models."""
    assert post("/v1/models/demo/echo-FP32:predict", {"instances": [1.0, 2.0, 5.0]}) == {"predictions": [1.0, 2.0, 5.0]}
    assert post("/v1/models/demo/echo-FP32/versions/1:predict", {"inputs": [1.0, 2.0]}) == {"outputs": [1.0, 2.0]}
    body = {"signature_name": "serving_default", "instances": [{"x": 3}, {"x": 4}]}
    assert post("/v1/models/demo/echo-INT32:predict", body) == {"predictions": [3, 4]}
    answer = post("/v1/models/demo/echo-BYTES:predict", {"instances": [{"b64": "aGVsbG8="}, "zwölf"]})
    assert answer == {"predictions": ["hello", "zwölf"]}, answer
    answer = post("/v1/models/demo/echo-BYTES:predict", {"instances": [{"b64": "/w=="}]})
    assert answer == {"predictions": [{"b64": "/w=="}]}, answer
    assert post("/v1/models/demo/echo-FP16:predict", {"instances": [1.5]}) == {"predictions": [1.5]}
    raw = request("/v1/models/demo/echo-FP64:predict", b'{"instances": [NaN, -Infinity]}')
    assert raw == b'{"predictions":[NaN,-Infinity]}', raw
    status = get("/v1/models/demo/echo-FP32")["model_version_status"]
    fine = {"error_code": "OK", "error_message": ""}
    assert status == [{"version": "1", "state": "AVAILABLE", "status": fine}], status
    metadata = get("/v1/models/demo/echo-FP32/versions/1/metadata")
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT", metadata
    assert "demo/credit" in get("/v1/models")["models"]


asyncio.run(kserve_rest())
asyncio.run(kserve_grpc())
mlflow()
tf_serving()
print("kserve, mlflow, tf serving: all well")
