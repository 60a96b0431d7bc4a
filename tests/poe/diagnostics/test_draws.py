from __future__ import annotations

import json
import math
from dataclasses import astuple, fields, replace

import pytest
import safetensors
import safetensors.torch
import torch

import poe
from poe.diagnostics.evidence import Diagnostics, diagnose
from poe.diagnostics.raw import interleaved
from tests.poe.targets import Gauss


def made(evidence: Diagnostics | None = None, *warnings: str, n: int = 400) -> poe.Draws:
    chains = torch.randn(4, n // 4, 2, generator=torch.Generator().manual_seed(0))
    energy = chains.square().sum(-1) / 2
    evidence = diagnose(chains, energy, 1) if evidence is None else evidence
    return poe.Draws(
        chains.flatten(0, 1), chains, energy, None, evidence, "chains", "a & b", warnings
    )


def test_chains_and_draws_are_the_same_numbers() -> None:
    draws = poe.sample(Gauss(0.0) & Gauss(1.0), 10, chains=4, seed=0)
    assert draws.chains.shape == (4, 3, 2) and draws.x.shape == (10, 2) and len(draws) == 10
    assert torch.equal(draws.x, interleaved(draws.chains, 10))
    assert torch.equal(draws.x[:4], draws.chains[:, 0])
    assert draws.energy.shape == (4, 3)
    assert torch.allclose(draws.energy, (Gauss(0.0) & Gauss(1.0))(draws.chains), atol=1e-5)


def test_the_report_names_expression_method_and_evidence() -> None:
    a, b = Gauss(0.0, name="a"), Gauss(1.0, name="b")
    report = poe.sample(a & b, 1000, seed=0, method="chains").report()
    for part in (
        "draws of a & b",
        "Microcanonical chains",
        "R-hat",
        "ESS",
        "acceptance",
        "log Z",
        "gradients",
    ):
        assert part in report
    assert "log Z          0.693147 (exact)" in poe.sample(a | b, 100, seed=0).report()


def test_saved_draws_come_back_whole(tmp_path) -> None:
    draws = poe.sample(Gauss(0.0) & Gauss(1.0), 100, seed=0)
    path = tmp_path / "draws.safetensors"
    draws.save(path)
    back = poe.Draws.load(path)
    assert torch.equal(back.x, draws.x) and torch.equal(back.energy, draws.energy)
    assert back.report() == draws.report() and back.warnings == draws.warnings


def test_all_evidence_and_every_warning_survive_a_file(tmp_path) -> None:
    evidence = Diagnostics(
        math.inf,
        math.nan,
        7.0,
        3.0,
        2,
        0.5,
        1,
        2,
        3.0,
        4.0,
        5.0,
        -math.inf,
        0.1,
        weight_ess=9.0,
        ancestors=8,
        nested=True,
        mcse=0.2,
        stein=-0.3,
        stein_pvalue=0.4,
        invalid=1,
        independent=True,
        chance=1.1,
        nonfinite_share=0.01,
    )
    assert all(
        value != field.default
        for field, value in zip(fields(Diagnostics), astuple(evidence), strict=True)
    )
    draws = made(evidence, "chains disagree; try more").warned(
        "nobody knows its mass", given="the target has finite mass"
    )
    draws.save(tmp_path / "draws")
    back = poe.Draws.load(tmp_path / "draws")
    assert repr(back.diagnostics) == repr(draws.diagnostics)
    assert (back.warnings, back.conditions, back.reasons) == (
        draws.warnings,
        draws.conditions,
        draws.reasons,
    )
    assert back.verdict == draws.verdict and back.report() == draws.report()


def test_a_file_of_another_version_opens_or_says_so(tmp_path) -> None:
    path = tmp_path / "draws"
    made().save(path)
    with safetensors.safe_open(str(path), framework="pt") as file:
        facts = json.loads(file.metadata()["poe.draws"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    old = facts | {
        "diagnostics": {
            "rhat": 1.0,
            "rhat_energy": 1.0,
            "ess_bulk": 9.0,
            "ess_tail": 9.0,
            "stuck": 0,
        }
    }
    del old["conditions"]
    safetensors.torch.save_file(tensors, path, {"poe.draws": json.dumps(old)})
    assert (
        math.isnan(poe.Draws.load(path).diagnostics.mcse) and poe.Draws.load(path).conditions == {}
    )
    safetensors.torch.save_file(tensors, path, {"poe.draws": json.dumps(facts | {"flavour": 1})})
    with pytest.raises(ValueError, match="holds draws that this version cannot read.*flavour"):
        poe.Draws.load(path)


def test_the_last_line_is_a_verdict_to_act_on() -> None:
    good = made()
    assert good.trusted and good.verdict.startswith("TRUSTED: ESS ") and "R-hat 1.0" in good.verdict
    assert (
        replace(good, diagnostics=replace(good.diagnostics, independent=True)).verdict
        == "TRUSTED: 400 independent draws"
    )
    tested = replace(good, diagnostics=replace(good.diagnostics, stein_pvalue=0.31))
    assert tested.verdict.endswith("Stein test p 0.31")

    note = "it is unknown whether a & b has finite mass (proper is unknown)"
    conditional = good.warned(note, given="the target has finite mass")
    assert conditional.trusted and conditional.warnings == (note,) and conditional.reasons == ()
    assert conditional.verdict.startswith("TRUSTED if the target has finite mass: ESS ")
    assert "trusted if the target has finite mass>" in repr(conditional)
    both = conditional.warned(
        "`|` rests on raw energies", given="the balance of raw energies is meant"
    )
    assert both.verdict.startswith(
        "TRUSTED if the target has finite mass and the balance of raw energies is meant: "
    )

    bad = conditional.warned("chains disagree; try this", "too few; try that")
    assert not bad.trusted and bad.warnings == (
        note,
        "chains disagree; try this",
        "too few; try that",
    )
    assert bad.verdict == "NOT TRUSTED: chains disagree; try this (and 1 more, above)"
    assert repr(bad).endswith("by chains; not trusted>")
    for draws in (good, conditional, bad):
        lines = draws.report().splitlines()
        assert lines[-1] == draws.verdict
        assert ("  warnings:" in lines) == bool(draws.warnings)
        assert ("  no warnings" in lines) != bool(draws.warnings)
        assert all(f"    - {warning}" in lines for warning in draws.warnings)

    nothing = replace(good, x=good.x[:0], chains=good.chains[:, :0], energy=good.energy[:, :0])
    assert not nothing.trusted and nothing.verdict.startswith("NOT TRUSTED: there are no draws")
    assert nothing.mean().isnan().all() and nothing.mcse().isnan().all()


def test_the_report_quotes_the_evidence_that_there_is() -> None:
    d = made().diagnostics
    report = made(
        replace(d, nested=True, stein_pvalue=0.02, weight_ess=321.0, ancestors=300, pareto_k=0.4)
    ).report()
    for part in (
        "nested: groups of short chains",
        "MCSE",
        "Stein test     p 0.02",
        "ESS 321, 300 distinct ancestors, Pareto k 0.40",
    ):
        assert part in report
    for part in ("nested", "Stein", "weights  ", "starts", "rung swaps", "acceptance"):
        assert part not in made().report()


def test_the_mean_and_its_error_are_those_of_theory() -> None:
    draws = made(n=40_000)
    error = draws.mcse()
    assert torch.allclose(
        error, torch.full((2,), 1 / 200.0), rtol=0.1
    )  # 40,000 independent draws of sd 1
    assert draws.mean().shape == (2,) and (draws.mean().abs() < 4.5 * error).all()
    assert torch.allclose(
        made(replace(draws.diagnostics, ancestors=100), n=40_000).mcse(),
        torch.full((2,), 0.1),
        rtol=0.05,
    )
    whole = replace(draws, x=(draws.x > 0).long(), chains=(draws.chains > 0).long())
    assert torch.allclose(whole.mean(), torch.full((2,), 0.5), atol=0.02)
    assert torch.allclose(whole.mcse(), torch.full((2,), 0.5 / 200), rtol=0.1)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_pictures_by_dimension(tmp_path, d: int) -> None:
    pytest.importorskip("matplotlib")
    draws = poe.sample(Gauss(0.0, d=d), 100, seed=0)
    draws.plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_a_damaged_file_of_draws_says_so(tmp_path) -> None:
    path = tmp_path / "draws.safetensors"
    poe.sample(Gauss(0.0), 50, seed=0).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"draws.safetensors cannot be read"):
        poe.Draws.load(path)
    poe.save(poe.create("normal", loc=[0.0], scale=[1.0]), path)
    with pytest.raises(ValueError, match="holds no draws; poe.load reads energies"):
        poe.Draws.load(path)
