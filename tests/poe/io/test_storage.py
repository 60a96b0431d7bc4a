"""Files: bit-equal in a new process, and a clear refusal of everything that is not what `save`
wrote."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

import experts
import poe
from poe import registry
from poe.algebra.energy import Energy
from poe.io import container, recipe
from poe.io.container import StorageError
from poe.io.storage import load, save

PLUGIN = '''
import torch
import poe.registry
from poe.algebra.energy import Density

@poe.registry.register("storage-gauss")
class Gauss(Density):
    """A Gaussian on R^n with learned mean and scale."""

    def __init__(self, size, mean=0.0, name=None):
        super().__init__((size,), name=name)
        self.mean = torch.nn.Parameter(torch.full((size,), float(mean)) + torch.rand(size))
        self.scale = torch.nn.Parameter(torch.ones(size) / 3)

    def log_prob(self, x):
        return torch.distributions.Normal(self.mean, self.scale).log_prob(x).sum(-1)

    def sample(self, n, *, generator=None):
        shape = (n,) if isinstance(n, int) else tuple(n)
        noise = torch.randn((*shape, *self.event_shape), generator=generator, dtype=self.dtype)
        return (self.mean + self.scale * noise).detach()

    def config(self):
        return {"size": self.event_shape[0]}
'''
scope: dict = {"__name__": "storage_plugin"}
exec(PLUGIN, scope)  # the same source as a module here and as an installed plug-in in a new process
Gauss = scope["Gauss"]


@registry.register("storage-stretch")
class Stretch(nn.Module):
    """A map that can be stored: x -> factor x, the factor learned."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return self.factor * x

    def config(self):
        return {}

    @classmethod
    def from_config(cls, **config):
        return cls(**config)


a, b, c = Gauss(2, -1, "a"), Gauss(2, 0, "digits.b"), Gauss(2, 1)
wide = Gauss(3, 0, "wide").double()


def shared_power():
    power = nn.Parameter(torch.tensor(0.3))
    return (a**power & b) | b**power


def named_part():
    pool = (a & b) ** 0.5
    pool.name = "pool"
    return (pool | c) - pool


CASES = {
    "leaf": lambda: a,
    "unnamed": lambda: c & Gauss(2, 2),
    "algebra": lambda: (a & b) ** (1 / 3) - c / a,
    "reused": lambda: (a & b) | (a - b),
    "weights": lambda: poe.mixture([a, b, c], weights=[1, 2, 4]),
    "contrast": lambda: poe.contrast(a, b, strength=0.1),
    "shift": lambda: poe.shift(a & b, 0.1, log_z=poe.Estimate(0.123456789, 0.01)) | c,
    "on": lambda: poe.on(a, [2, 0], (3,)) & poe.on(b, [0, 1], (3,)),
    "fill": lambda: (
        wide.float() @ poe.fill(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([False, True, False]))
    ),
    "map": lambda: a @ Stretch(1.7) & b,
    "learned": lambda: a ** nn.Parameter(torch.tensor(0.1)) & b,
    "shared power": shared_power,
    "double": lambda: (Gauss(2, 0, "d") ** nn.Parameter(torch.tensor(0.1)) & Gauss(2, 1)).double(),
    "half": lambda: (Gauss(2, 0, "h") & Gauss(2, 1)).to(torch.bfloat16),
    "named part": named_part,
}


def bits(tensor):
    return tensor.detach().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("case", CASES)
def test_loaded_is_bit_equal(case, tmp_path):
    e = CASES[case]()
    save(e, tmp_path / "e.safetensors")
    read = load(tmp_path / "e.safetensors")
    x = torch.randn(64, *e.event_shape, dtype=e.dtype)
    assert torch.equal(bits(read(x)), bits(e(x)))
    assert str(read) == str(e)
    assert read.name == e.name
    assert read.dtype == e.dtype
    assert type(read) is type(e)
    assert read.log_z == e.log_z
    assert not read.training
    assert not any(part.training for part in read.modules())
    before, after = (
        list(e.parameters()),
        list(read.parameters()),
    )  # each once, however often it is used
    assert [p.requires_grad for p in after] == [p.requires_grad for p in before]
    assert all(torch.equal(bits(p), bits(q)) for p, q in zip(before, after, strict=True))


def test_equal_energies_give_equal_files(tmp_path):
    for name in "xy":
        save(CASES["algebra"](), tmp_path / name)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_composition_of_many_levels(tmp_path):
    energy = a
    for _ in range(120):
        energy = energy - b
    save(energy, tmp_path / "e")
    again = load(tmp_path / "e")
    x = torch.zeros(2, *energy.event_shape)
    assert str(again) == str(energy) and torch.equal(again(x), energy(x))


def test_an_expert_is_stored_once(tmp_path):
    big = Gauss(50_000, 0, "big")
    save((big | big**2) - big, tmp_path / "e")
    assert (tmp_path / "e").stat().st_size < 1.1 * 8 * 50_000


def test_loading_leaves_the_global_random_state(tmp_path):
    save(a, tmp_path / "e")
    state = torch.random.get_rng_state()
    load(tmp_path / "e")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bit_equal_in_a_new_process(tmp_path):
    e = CASES["shared power"]() & CASES["named part"]()
    x = torch.randn(64, 2)
    save(e, tmp_path / "e.safetensors")
    safetensors.torch.save_file({"x": x}, tmp_path / "x.safetensors")
    (tmp_path / "storage_plugin.py").write_text(PLUGIN)
    info = tmp_path / "storage_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: storage-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[poe.experts]\nstorage-gauss = storage_plugin:Gauss\n")
    script = (
        "import safetensors.torch as s\n"
        "from poe.io.storage import load\n"
        "e, x = load('e.safetensors'), s.load_file('x.safetensors')['x']\n"
        "value, gradient = e.value_and_grad(x)\n"
        "s.save_file({'value': value, 'gradient': gradient}, 'y.safetensors')\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    there = safetensors.torch.load_file(tmp_path / "y.safetensors")
    value, gradient = e.value_and_grad(x)
    assert torch.equal(there["value"], value)
    assert torch.equal(there["gradient"], gradient)


# ---- files that are refused


@pytest.fixture
def content(tmp_path):
    save(CASES["algebra"](), tmp_path / "good")
    return (tmp_path / "good").read_bytes()


def refusal(path):
    with pytest.raises(StorageError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_200_corruptions_each_give_a_clear_error(content, tmp_path):
    rng, path = random.Random(0), tmp_path / "bad.safetensors"
    for trial in range(200):
        data = bytearray(content)
        place = rng.randrange(len(data))
        match trial % 5:
            case 0:
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                data[place] = (data[place] + rng.randrange(1, 256)) % 256
            case 2:
                del data[place:]
            case 3:
                data[place:place] = rng.randbytes(rng.randrange(1, 9))
            case 4:
                del data[place : place + rng.randrange(1, 9)]
        path.write_bytes(bytes(data))
        assert len(refusal(path)) > len(str(path)) + 20


def test_every_single_bit_of_the_header_counts(content, tmp_path):
    size = 8 + int.from_bytes(content[:8], "little")
    for place in range(size):
        data = bytearray(content)
        data[place] ^= 1 << (place % 8)
        with pytest.raises(StorageError):
            recipe.from_bytes(bytes(data))


def test_padding_that_json_overlooks_counts(content):
    size = 8 + int.from_bytes(content[:8], "little")
    header = content[8:size].rstrip(b" ") + b" \t"
    with pytest.raises(StorageError, match="header is damaged"):
        recipe.from_bytes(len(header).to_bytes(8, "little") + header + content[size:])


def test_pickles_are_refused_unopened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    path = tmp_path / "model.pt"
    for write in (
        lambda: torch.save({"w": torch.ones(2)}, path),
        lambda: torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False),
        lambda: path.write_bytes(pickle.dumps(Trap())),
    ):
        write()
        message = refusal(path)
        assert "pickle" in message
        assert "weights_only=True" in message
        assert "poe.save" in message
    assert not (tmp_path / "sprung").exists()


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "foreign"
    image = io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    for data in (b"", b"hello", image.getvalue(), b"\0" * 200, b'{"a": 1}'):
        path.write_bytes(data)
        assert "not a safetensors file" in refusal(path)
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    assert "no recipe" in refusal(path)
    safetensors.torch.save_file({"w": torch.ones(2)}, path, metadata={"poe": "[1, 2]"})
    assert "recipe is damaged" in refusal(path)


def forge(content, path, change):
    """The same tensors under a changed recipe, its checksum made good."""
    tensors = safetensors.torch.load(content)
    text = json.loads(container.recipe_text(content))
    change(text)
    text["sha256"] = container.checksum(text, tensors)
    safetensors.torch.save_file(tensors, path, metadata={"poe": container.compact(text)})
    return path


@pytest.mark.parametrize(
    "name", ["os.system", "torch.nn:Linear", "storage_plugin.Gauss", "../x", "", 3, None]
)
def test_an_import_path_in_a_recipe_is_refused(content, tmp_path, name):
    path = forge(content, tmp_path / "bad", lambda recipe: recipe["parts"][0].update(expert=name))
    assert "never an import path" in refusal(path)


@pytest.mark.parametrize(
    ("change", "helpful"),
    [
        (lambda r: r.update(format=3), "upgrade poe"),
        (lambda r: r["parts"][0].update(expert="storage-gaus"), "did you mean 'storage-gauss'"),
        (lambda r: r["parts"][0].update(config={"size": 7}), "do not fit"),
        (lambda r: r["parts"][0].update(config={"colour": 7}), "colour"),
        (lambda r: r.update(expression="a & nobody"), "unknown name 'nobody'"),
        (lambda r: r.update(expression="__import__('os')"), "cannot be called"),
        (lambda r: r.update(powers=[0]), "powers"),
        (lambda r: r.pop("parts"), "parts"),
        (lambda r: r.update(parts=3), "damaged"),
    ],
)
def test_forged_recipes_are_refused(content, tmp_path, change, helpful):
    assert helpful in refusal(forge(content, tmp_path / "bad", change))


@pytest.mark.parametrize(
    ("make", "name", "former"),
    [
        (lambda: experts.MixtureMADE((2,), hidden=8), "mixture-made", "made"),
        (lambda: experts.MADE((2,), hidden=8), "made", "discrete-made"),
    ],
)
def test_a_name_of_an_older_format_is_the_expert_of_that_time(make, name, former, tmp_path):
    expert, x = make(), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    save(expert, tmp_path / "new")
    content = (tmp_path / "new").read_bytes()

    def older(recipe):
        assert (recipe["format"], recipe["parts"][0]["expert"]) == (2, name)
        recipe["format"] = 1
        recipe["parts"][0]["expert"] = former

    for path in (tmp_path / "new", forge(content, tmp_path / "old", older)):
        again = load(path)
        assert type(again) is type(expert)
        assert torch.equal(again(x), expert(x))


# ---- energies that are refused


class Silent(Energy):
    """No config, not registered."""

    def forward(self, x):
        return x.square().sum(-1)


@registry.register("storage-odd")
class Odd(Silent):
    """A config that is no plain JSON."""

    def __init__(self, answer=None):
        super().__init__((2,), name="odd")
        self.answer = answer

    def config(self):
        return self.answer


@registry.register("storage-forgetful")
class Forgetful(Silent):
    """A config that leaves out what its constructor needs."""

    def __init__(self, size):
        super().__init__((size,))

    def config(self):
        return {}


def squash(x):
    return x.tanh()


@pytest.mark.parametrize(
    ("make", "helpful"),
    [
        (lambda: Silent((2,), name="mine"), ["mine", "Silent", "config()", "@poe.register"]),
        (lambda: Odd({"f": torch.ones(1)}), ["odd", "config()", "plain JSON"]),
        (lambda: Odd({"x": float("nan")}), ["odd", "config()", "plain JSON"]),
        (lambda: Odd(3), ["odd", "config()", "dict"]),
        (lambda: Forgetful(2), ["would not load again", "size"]),
        (lambda: a @ squash, ["squash", "not registered"]),
        (lambda: a @ nn.Linear(2, 2), ["linear", "Linear", "config()"]),
    ],
)
def test_what_cannot_be_saved_is_named(make, helpful, tmp_path):
    with pytest.raises(StorageError) as caught:
        save(make() & b, tmp_path / "e")
    assert [word for word in helpful if word not in str(caught.value)] == []
    assert list(tmp_path.iterdir()) == []


def test_writes_are_atomic(tmp_path, monkeypatch):
    path = tmp_path / "e"
    save(a, path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(container.os, call, fail)
            with pytest.raises(OSError, match="no space left"):
                save(a & b, path)
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == before


def test_a_missing_folder_is_named_as_it_was_given(tmp_path):
    path = tmp_path / "none" / "e.safetensors"
    with pytest.raises(FileNotFoundError) as caught:
        save(a, path)
    assert caught.value.filename == str(path) and str(caught.value).endswith(f"{str(path)!r}")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - which one is the system's affair
        save(a, tmp_path / "folder")
    assert caught.value.filename == str(tmp_path / "folder") and list(tmp_path.iterdir()) == [
        tmp_path / "folder"
    ]


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        load("none.safetensors")
