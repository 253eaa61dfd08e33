"""Calls the gRPC services other than inference with gRPC's own clients, and tests cancellation.

Argument: host:port of a port that serves gRPC. The host serves demo/echo-FP32 and demo/spins. demo/spins runs until it
is stopped. It runs one request at a time and lets none wait.
"""

import sys
import time

import grpc
import numpy as np
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.utils import InferenceServerException

ADDRESS = sys.argv[1]
channel = grpc.insecure_channel(ADDRESS)

health = health_pb2_grpc.HealthStub(channel)
for service in ("", "inference.GRPCInferenceService"):
    assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING
try:
    health.Check(health_pb2.HealthCheckRequest(service="nope"))
    raise AssertionError("an unknown service is healthy")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.NOT_FOUND, error

reflection = ProtoReflectionDescriptorDatabase(channel)
assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(reflection.get_services())
file = reflection.FindFileContainingSymbol("inference.GRPCInferenceService")
assert "ModelStreamInfer" in [method.name for method in file.service[0].method], file

try:
    channel.unary_unary("/nope.Service/Call")(b"")
    raise AssertionError("an unknown service answered")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error

client = triton.InferenceServerClient(ADDRESS)
tensor = triton.InferInput("x", [1], "FP32")
tensor.set_data_from_numpy(np.zeros(1, dtype=np.float32))
assert client.infer("demo/echo-FP32", [tensor]).as_numpy("y") == 0


def code_of(call):
    try:
        call()
    except InferenceServerException as error:
        return error.status()
    raise AssertionError("a spinning model answered")


def infer_briefly():
    """The caller's deadline stops the guest, which frees the only place for the next request."""
    code = code_of(lambda: client.infer("demo/spins", [tensor], client_timeout=0.3))
    assert code == "StatusCode.DEADLINE_EXCEEDED", code


infer_briefly()
time.sleep(0.5)
infer_briefly()
time.sleep(0.5)
outcome = []
call = client.async_infer("demo/spins", [tensor], lambda result, error: outcome.append(error))
time.sleep(0.3)
assert code_of(lambda: client.infer("demo/spins", [tensor])) == "StatusCode.RESOURCE_EXHAUSTED"
call.cancel()
time.sleep(0.5)
infer_briefly()
print("health, reflection, cancellation: all well")
