"""Several ranks compress one model: what is dealt to whom, that the result is one rank's, and that none outlives another."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rank_work import RECIPE

import featherweight as fw
from common import TINY
from featherweight.engine.dealing import Job, deal, jobs_of
from featherweight.engine.ranks import Ranks
from featherweight.errors import FeatherweightError

HERE = Path(__file__).parent
WORK = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}


def longest(jobs: list[Job], ranks: tuple[int, ...]) -> float:
    """When the last rank is done."""
    shared = {(rank, job.axis): job.shared for rank, job in zip(ranks, jobs, strict=True)}
    loads = dict.fromkeys(ranks, 0.0)
    for rank, job in zip(ranks, jobs, strict=True):
        loads[rank] += job.cost
    for (rank, _), cost in shared.items():
        loads[rank] += cost
    return max(loads.values())


def test_linears_are_dealt_nearly_as_well_as_can_be() -> None:
    draw = random.Random(0)
    for _ in range(5):
        jobs = [Job(str(index), f"axis {index}", draw.uniform(1, 9), draw.uniform(0, 9)) for index in range(6)]
        dealt = deal(jobs, 3)
        best = min(longest(jobs, ranks) for ranks in itertools.product(range(3), repeat=6))
        assert longest(jobs, tuple(dealt[job.name] for job in jobs)) <= (4 / 3 - 1 / 9) * best + 1e-9
    dealt = deal([Job("down", "inner", 11.0, 0.0), *(Job(name, "input", 1.0, 9.0) for name in "qk")], 2)
    assert dealt["q"] == dealt["k"] != dealt["down"], "one Hessian is not factorised twice for so little"
    assert set(deal([Job(name, "input", 9.0, 1.0) for name in "qkv"], 2).values()) == {0, 1}
    plan = fw.plan("demo", "gptq-4bit")
    block = plan.structure.blocks[0]
    dealt = deal(jobs_of(plan, block, plan.axes[block]), 2)
    assert dealt.keys() == {linear.name for linear in plan.linears(block)} and set(dealt.values()) == {0, 1}


def test_every_window_has_one_rank() -> None:
    tokens = torch.arange(12)[:, None]
    for size, whole in ((2, True), (7, False), (4, False), (8, True)):
        shares = [Ranks(rank, 3).share(tokens, size, whole_batches=whole) for rank in range(3)]
        assert sorted(torch.cat([share for share, _ in shares]).flatten().tolist()) == list(range(12))
        batches = [[len(batch) for batch in share.split(own)] for share, own in shares]
        if whole and size == 2:
            assert sum(map(len, batches)) == 6 and max(map(max, batches)) == 2
        else:
            assert len({len(each) for each in batches}) == 1, "a part of every batch"
    with pytest.raises(FeatherweightError, match="cannot be shared"):
        Ranks(0, 3).share(tokens, 5, whole_batches=False)


def test_two_ranks_give_what_one_gives_and_repeat_themselves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(HERE / "rank_work.py"), str(tmp_path)], env=WORK, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["statistics"].keys() == {"one", "all"} and max(found["statistics"].values()) < 1e-12
    assert found["gradients"] < 1e-6
    assert all("recipe: of 0 on rank 0, of 1 on rank 1" in each["found"] for each in found["disagreement"])
    assert found["error"][0] == found["error"][1] and "no ledger" in found["error"][1]["error"]
    fw.compress(fw.plan("demo", RECIPE, changes=TINY), tmp_path / "alone", device="cpu", statistics=tmp_path / "kept")
    ledgers = [json.loads((tmp_path / run / "ledger.json").read_text()) for run in ("alone", "first", "second")]
    assert ledgers[1]["files"] == ledgers[2]["files"]
    fw.verify(tmp_path / "first")
    for one, two in zip(ledgers[0]["rows"], ledgers[1]["rows"], strict=True):
        if one["relative_error"] is not None:
            assert two["relative_error"] == pytest.approx(one["relative_error"], rel=0.05)
            if "block_loss" in one:
                assert two["block_loss_even"] == pytest.approx(one["block_loss_even"], rel=1e-5)
                assert two["block_loss"] == pytest.approx(one["block_loss"], rel=1e-3)
    assert any("block_loss" in row for row in ledgers[0]["rows"])


def test_a_rank_that_dies_ends_the_other_and_one_rank_goes_on(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    words = ["compress", "demo", "-r", "gptq-4bit", "-o", str(tmp_path / "out"), "--device", "cpu", "--offline"]
    words += ["--samples", "8", "--length", "64"]
    ranks = []
    for rank in ("0", "1"):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-m", "featherweight", *words]
        ranks.append(subprocess.Popen(command, env={**WORK, **told}, stderr=subprocess.PIPE, text=True))
    journal, deadline = tmp_path / "out" / "journal.json", time.monotonic() + 120
    while not (journal.is_file() and len(json.loads(journal.read_text())["entries"]) > 1):
        assert time.monotonic() < deadline and all(each.poll() is None for each in ranks)
        time.sleep(0.02)
    ranks[1].send_signal(signal.SIGKILL)
    told = ranks[0].communicate(timeout=60)[1]
    assert ranks[0].returncode not in (0, None) and "rank 0" in told and "goes on after the last finished block" in told, told
    ranks[1].communicate()
    changes = {"calibration.samples": 8, "calibration.length": 64}
    result = fw.compress(fw.plan("demo", "gptq-4bit", changes=changes), tmp_path / "out", device="cpu", offline=True)
    entries = json.loads(journal.read_text())["entries"]
    assert result.resumed >= 2 and [entry["ranks"] for entry in entries] == sorted(
        (entry["ranks"] for entry in entries), reverse=True
    )
    assert {entry["ranks"] for entry in entries} == {1, 2}
    fw.verify(tmp_path / "out")
