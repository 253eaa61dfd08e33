"""Compares a host with onnxruntime in this process, on random inputs.

    python onnx_compare.py HOST:PORT COUNT TOLERANCE GRAPH.onnx=MODEL ...

It sends binary tensors with tritonclient. Differences are absolute for values below 1, and relative above.
"""

import sys

import numpy as np
import onnxruntime

WORDS = np.array(["Graz", "Linz", "Wien", "", "grün", "longer than the others"], dtype=object)
KINDS = {
    "float": np.float32, "double": np.float64, "float16": np.float16, "bool": np.bool_, "string": np.object_,
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}").type for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def values(random, kind, shape):
    dtype = KINDS[kind.removeprefix("tensor(").removesuffix(")")]
    if dtype is np.object_:
        return random.choice(WORDS, shape)
    if dtype is np.bool_:
        return random.integers(0, 2, shape).astype(bool)
    if np.issubdtype(dtype, np.integer):
        return random.integers(0, 20, shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


def feed(random, session):
    sizes = {}
    for tensor in session.get_inputs():
        for at, size in enumerate(tensor.shape):
            if not isinstance(size, int):
                sizes.setdefault(size or (tensor.name, at), int(random.integers(1, 10)))
    if any(None in tensor.shape for tensor in session.get_inputs()):  # skl2onnx: an unnamed dimension is the rows
        rows = int(random.integers(1, 10))
        sizes = {key: rows if isinstance(key, tuple) and key[1] == 0 else size for key, size in sizes.items()}
    return {
        tensor.name: values(random, tensor.type, [
            size if isinstance(size, int) else sizes[size or (tensor.name, at)] for at, size in enumerate(tensor.shape)
        ])
        for tensor in session.get_inputs()
    }


def plain(answer):
    """An answer as an array. A classifier's maps become rows of probabilities."""
    if isinstance(answer, list):
        return np.array([[row[key] for key in sorted(row)] for row in answer], np.float32)
    return np.asarray(answer)


def compare(client, session, model, count, tolerance):
    from tritonclient.http import InferInput
    from tritonclient.utils import np_to_triton_dtype

    random, worst = np.random.default_rng(5), 0.0
    names = [output.name for output in session.get_outputs()]
    for _ in range(count):
        given = feed(random, session)
        expected = [plain(answer) for answer in session.run(names, given)]
        inputs = []
        for name, value in given.items():
            inputs.append(InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype)))
            inputs[-1].set_data_from_numpy(value)
        answer = client.infer(model, inputs)
        for name, wanted in zip(names, expected):
            came = answer.as_numpy(name)
            assert came.shape == wanted.shape, (model, name, came.shape, wanted.shape)
            if came.dtype == np.object_:
                assert [text.decode() for text in came.ravel()] == [str(text) for text in wanted.ravel()], (model, name)
                continue
            assert came.dtype == wanted.dtype, (model, name, came.dtype, wanted.dtype)
            came, wanted = came.astype(np.float64), wanted.astype(np.float64)
            difference = np.max(np.abs(came - wanted) / np.maximum(1, np.abs(wanted)), initial=0.0)
            assert difference <= tolerance, (model, name, difference)
            worst = max(worst, difference)
    return worst


def configured(clients, model):
    """The backend of the model's graph. Both transports must report the same."""
    http, grpc = (client.get_model_config(model) for client in clients)
    told = {name: value.string_value for name, value in grpc.config.parameters.items()}
    assert told == {name: value["string_value"] for name, value in http["parameters"].items()}, (http, grpc)
    return ", ".join(told.values()) or "its sandbox"


def main():
    address, count, tolerance = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    import tritonclient.grpc
    from tritonclient.http import InferenceServerClient

    client = InferenceServerClient(address)
    clients = client, tritonclient.grpc.InferenceServerClient(address)
    for pair in sys.argv[4:]:
        graph, model = pair.split("=")
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        worst = compare(client, session, model, count, tolerance)
        print(f"{model}: {count} random inputs by {configured(clients, model)}, largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
