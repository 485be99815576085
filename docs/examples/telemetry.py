"""Print completion timings from a running cluster (columns are little-endian, times nanoseconds)."""

import sys

import msgpack
import zmq

sub = zmq.Context().socket(zmq.SUB)
sub.connect(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5552")
sub.subscribe("done.")
while True:
    worker, _sequence, models, *columns = msgpack.unpackb(sub.recv_multipart()[2])[2:]
    views = map(memoryview.cast, map(memoryview, columns), "QIIIIqqqq")
    for _batch, gpu, model, size, *_, start, end in zip(*views, strict=True):
        print(f"{worker} GPU {gpu}: {models[model]}, {size} in {(end - start) / 1e6:.3f} ms", flush=True)
