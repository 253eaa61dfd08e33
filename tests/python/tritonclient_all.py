"""Drives a host with the unmodified tritonclient, over HTTP and gRPC, with and without asyncio.

Argument: host:port. The host serves demo/echo-<datatype> (input x [-1], output y [-1]), demo/fails, demo/spins and
demo/credit. It lets callers load and unload.
"""

import asyncio
import gzip
import json
import queue
import sys
import tomllib
import urllib.request
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

ADDRESS = sys.argv[1]
DATATYPES = {
    "BOOL": [True, False, True],
    "UINT8": [0, 255], "UINT16": [0, 65535], "UINT32": [0, 2**32 - 1], "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127], "INT16": [-(2**15), 2**15 - 1], "INT32": [-(2**31), 2**31 - 1], "INT64": [-(2**63), 2**63 - 1],
    "FP16": [1.5, -65504.0, float("inf")], "FP32": [1.5, 1e-30, float("nan"), float("-inf")], "FP64": [0.1, -1e300],
    "BF16": [1.5, -2.0], "BYTES": ["", "zwölf", 'quo"te', b"\x00\xff".decode("latin1")],
}


def tensor_of(library, datatype, binary=None):
    dtype = ml_dtypes.bfloat16 if datatype == "BF16" else triton_to_np_dtype(datatype)
    values = np.array(DATATYPES[datatype], dtype=np.object_ if datatype == "BYTES" else dtype)
    tensor = library.InferInput("x", values.shape, datatype)
    tensor.set_data_from_numpy(values, **({} if binary is None else {"binary_data": binary}))
    return values, tensor


def same(came, values, datatype):
    if datatype == "BYTES":
        return [item.decode() if isinstance(item, bytes) else item for item in came] == list(values)
    return came.dtype == values.dtype and np.array_equal(came, values, equal_nan=datatype in ("FP32", "FP64"))


def check_result(result, values, datatype):
    assert same(result.as_numpy("y"), values, datatype), (datatype, result.as_numpy("y"), values)
    response = result.get_response()
    read = response.get if isinstance(response, dict) else partial(getattr, response)
    assert (read("model_name"), read("model_version"), read("id")) == (f"demo/echo-{datatype}", "1", "r-1"), response


def metadata_agrees(metadata):
    assert metadata["name"] == "demo/echo-FP32" and metadata["versions"] == ["1"], metadata
    assert [int(dim) for dim in metadata["inputs"][0]["shape"]] == [-1], metadata
    assert metadata["outputs"][0]["datatype"] == "FP32", metadata


def refused(call, text):
    try:
        call()
    except InferenceServerException as error:
        assert text in error.message(), error.message()
        return
    raise AssertionError(f"not refused: {text}")


def plain(message):
    """A number of either client. The gRPC client's JSON has 64-bit numbers as text and omits zeros."""
    return int(message or 0)


def extensions(library, client, dictionary):
    """Calls everything that both transports offer besides plain inference."""
    assert client.is_server_live() and client.is_server_ready()
    server = client.get_server_metadata(**dictionary)
    assert server["name"] == "modelhost" and "binary_tensor_data" in server["extensions"], server
    assert client.is_model_ready("demo/echo-FP32") and client.is_model_ready("demo/echo-FP32", "1")
    metadata_agrees(client.get_model_metadata("demo/echo-FP32", **dictionary))
    config = client.get_model_config("demo/echo-FP32", **dictionary)
    config = config.get("config", config)
    assert config["input"][0]["data_type"] == "TYPE_FP32" and config["backend"] == "component", config

    before = client.get_inference_statistics("demo/echo-FP32", "1", **dictionary)["model_stats"][0]
    values, tensor = tensor_of(library, "FP32")
    client.infer("demo/echo-FP32", [tensor])
    after = client.get_inference_statistics("demo/echo-FP32", **dictionary)["model_stats"][0]
    assert plain(after["inference_count"]) - plain(before.get("inference_count")) == len(values), (before, after)
    assert plain(after["inference_stats"]["success"]["count"]) >= 1 and plain(after["last_inference"]) > 0, after

    index = client.get_model_repository_index(**dictionary)
    index = index if isinstance(index, list) else index["models"]
    assert {"demo/echo-FP32", "demo/credit"} <= {entry["name"] for entry in index}, index
    client.unload_model("demo/echo-INT8")
    assert not client.is_model_ready("demo/echo-INT8")
    refused(lambda: client.infer("demo/echo-INT8", [tensor_of(library, "INT8")[1]]), "unloaded")
    client.load_model("demo/echo-INT8")
    assert client.is_model_ready("demo/echo-INT8")
    refused(lambda: client.load_model("demo/nope"), 'model "demo/nope" is not registered')
    refused(lambda: client.load_model("demo/echo-INT8", config="{}"), 'parameter "config"')

    assert client.get_log_settings(**dictionary)
    assert client.get_trace_settings(**dictionary)
    wrong = library.InferInput("x", [2], "FP64")
    wrong.set_data_from_numpy(np.zeros(2))
    refused(lambda: client.infer("demo/echo-FP32", [wrong]), 'input "x": datatype FP64 is not FP32')
    refused(lambda: client.infer("demo/nope", [tensor]), 'model "demo/nope" is not registered')
    refused(lambda: client.infer("demo/fails", [tensor]), "its weights are not numbers")


def classes(library, client):
    values, tensor = tensor_of(library, "INT32")
    asked = [library.InferRequestedOutput("y", class_count=2)]
    came = client.infer("demo/echo-INT32", [tensor], outputs=asked).as_numpy("y")
    assert list(came) == [b"2147483647:1", b"-2147483648:0"], came


def over_http():
    client = http.InferenceServerClient(ADDRESS)
    extensions(http, client, {})
    assert not client.is_model_ready("demo/nope")
    for datatype in DATATYPES:
        for binary in (True, False):
            if not binary and datatype in ("FP16", "BF16"):
                continue  # tritonclient sends these only in binary
            values, tensor = tensor_of(http, datatype, binary)
            asked = [http.InferRequestedOutput("y", binary_data=binary)]
            result = client.infer(f"demo/echo-{datatype}", [tensor], outputs=asked, request_id="r-1")
            check_result(result, values, datatype)
        values, tensor = tensor_of(http, datatype)
        for algorithm in ("gzip", "deflate"):
            result = client.infer(
                f"demo/echo-{datatype}", [tensor], request_id="r-1",
                request_compression_algorithm=algorithm, response_compression_algorithm=algorithm,
            )
            check_result(result, values, datatype)
    pending = [client.async_infer("demo/echo-FP64", [tensor_of(http, "FP64")[1]], request_id="r-1") for _ in range(20)]
    for one in pending:
        check_result(one.get_result(), np.array(DATATYPES["FP64"]), "FP64")
    classes(http, client)

    # A large answer is compressed on request.
    large = np.zeros(100_000, dtype=np.float32)
    tensor = http.InferInput("x", large.shape, "FP32")
    tensor.set_data_from_numpy(large)
    result = client.infer("demo/echo-FP32", [tensor], response_compression_algorithm="gzip")
    assert np.array_equal(result.as_numpy("y"), large)

    # In a raw request, the header is 0 and the body is the tensor.
    request = urllib.request.Request(
        f"http://{ADDRESS}/v2/models/demo/echo-FP32/infer",
        data=gzip.compress(np.array([1, 2, 3], dtype=np.float32).tobytes()),
        headers={"Inference-Header-Content-Length": "0", "Content-Encoding": "gzip"},
    )
    with urllib.request.urlopen(request) as response:
        json_length = int(response.headers["Inference-Header-Content-Length"])
        body = response.read()
    assert json.loads(body[:json_length])["outputs"][0]["shape"] == [3], body
    assert list(np.frombuffer(body[json_length:], dtype=np.float32)) == [1, 2, 3], body

    # The real model gets every held-out row, as the table that the signature describes.
    example = Path(__file__).parents[2] / "examples" / "credit-risk"
    rows = json.loads((example / "held-out.json").read_text())
    expected = json.loads((example / "expected.json").read_text())["xgboost"]
    features = tomllib.loads((example / "xgboost" / "model.toml").read_text())["features"]
    code = lambda feature, value: feature["categories"].index(value) if "categories" in feature else value
    table = np.array([[code(feature, row[feature["name"]]) for feature in features] for row in rows], dtype=np.float32)
    tensor = http.InferInput("input", table.shape, "FP32")
    tensor.set_data_from_numpy(table)
    came = client.infer("demo/credit", [tensor]).as_numpy("probability")
    assert np.abs(came - np.array(expected)).max() < 1e-6


def over_grpc():
    client = grpc.InferenceServerClient(ADDRESS)
    extensions(grpc, client, {"as_json": True})
    refused(lambda: client.is_model_ready("demo/nope"), "not registered")
    for datatype in DATATYPES:
        values, tensor = tensor_of(grpc, datatype)
        for algorithm in (None, "gzip", "deflate"):
            result = client.infer(f"demo/echo-{datatype}", [tensor], request_id="r-1", compression_algorithm=algorithm)
            check_result(result, values, datatype)
    classes(grpc, client)
    try:
        client.infer("demo/spins", [tensor_of(grpc, "FP32")[1]], client_timeout=0.2)
        raise AssertionError("the deadline was not honoured")
    except InferenceServerException as error:
        assert error.status() == "StatusCode.DEADLINE_EXCEEDED", error

    large = np.arange(4_000_000, dtype=np.float32)  # 16 MB, four times tonic's default bound
    tensor = grpc.InferInput("x", large.shape, "FP32")
    tensor.set_data_from_numpy(large)
    assert np.array_equal(client.infer("demo/echo-FP32", [tensor]).as_numpy("y"), large)

    # A stream answers in order. A failure in between does not end it.
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number in range(10):
        values, tensor = tensor_of(grpc, "INT64")
        model = "demo/fails" if number == 5 else "demo/echo-INT64"
        if number == 5:
            tensor = tensor_of(grpc, "FP32")[1]
        client.async_stream_infer(model, [tensor], request_id=str(number))
    for number in range(10):
        result, error = answers.get(timeout=60)
        if number == 5:
            assert "its weights are not numbers" in error.message(), error
        else:
            assert error is None and result.get_response().id == str(number), error
    client.stop_stream()


async def over_aio():
    client = http_aio.InferenceServerClient(ADDRESS)
    assert await client.is_server_live() and await client.is_server_ready()
    assert await client.is_model_ready("demo/echo-FP32")
    metadata_agrees(await client.get_model_metadata("demo/echo-FP32"))
    for datatype in DATATYPES:
        values, tensor = tensor_of(http_aio, datatype)
        check_result(await client.infer(f"demo/echo-{datatype}", [tensor], request_id="r-1"), values, datatype)
    await client.close()

    client = grpc_aio.InferenceServerClient(ADDRESS)
    assert await client.is_server_live() and await client.is_server_ready()
    assert await client.is_model_ready("demo/echo-FP32")
    metadata_agrees(await client.get_model_metadata("demo/echo-FP32", as_json=True))
    for datatype in DATATYPES:
        values, tensor = tensor_of(grpc_aio, datatype)
        check_result(await client.infer(f"demo/echo-{datatype}", [tensor], request_id="r-1"), values, datatype)

    async def requests():
        for number in range(5):
            tensor = tensor_of(grpc_aio, "INT32")[1]
            yield {"model_name": "demo/echo-INT32", "inputs": [tensor], "request_id": str(number)}

    number = 0
    async for result, error in client.stream_infer(requests()):
        assert error is None and result.get_response().id == str(number), error
        number += 1
    assert number == 5
    await client.close()


over_http()
over_grpc()
asyncio.run(over_aio())
print("tritonclient: all well")
