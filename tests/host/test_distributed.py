"""One prompt on a master and a worker of ComfyUI-Distributed, which TROUPE_DISTRIBUTED names."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.host.other_packs import folder_of
from support.host.two_servers import server_in, started_together
from support.shipped_templates import template
from troupe_tools.engine.host_server import HostServer
from troupe_tools.engine.on_comfyui import convert

pytestmark = pytest.mark.slow
PACK = "TROUPE_DISTRIBUTED", "ComfyUI-Distributed"
WORKER, SEED, STEPS, WAIT = "0", 5, 4, 120


@pytest.fixture(scope="module")
def servers(host, tmp_path_factory):
    """(master, worker), each with its own copy of the pack, which keeps its settings in its folder."""
    place, both = folder_of(*PACK), []
    for name in ("master", "worker"):
        base = tmp_path_factory.mktemp(name)
        shutil.copytree(place, base / "custom_nodes" / "ComfyUI-Distributed", ignore=shutil.ignore_patterns(".git"))
        both.append(server_in(host, base))
    with started_together(both) as servers:
        yield servers


def post(server: HostServer, path: str, body: dict) -> dict:
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}{path}", data, headers)  # noqa: S310 (our own server)
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 (our own server)
        return json.load(answer)


def finished(server: HostServer, id_: str) -> dict:
    """The history of a prompt, once it has ended."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        with urllib.request.urlopen(f"{server.url}/history/{id_}", timeout=60) as answer:  # noqa: S310 (our own server)
            if found := json.load(answer).get(id_):
                return found
        time.sleep(0.3)
    raise AssertionError(f"prompt {id_} did not end in {WAIT} seconds")


def prompt_of(server: HostServer) -> tuple[dict, str, str]:
    """The first template with few steps, and the ids of its sampler and its decoder."""
    prompt = convert(template("1_start_here_rehearsal"), server.object_info())
    ids = {node["class_type"]: id_ for id_, node in prompt.items()}
    prompt[ids["KSampler"]]["inputs"].update(seed=SEED, steps=STEPS)
    return prompt, ids["KSampler"], ids["VAEDecode"]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_master_and_worker_paint_the_two_seeds_of_one_prompt(servers):
    """Distributed Seed gives the worker the next seed, the collector on the master has both pictures: each is what one
    server alone paints at its seed.
    """
    master, worker = servers
    prompt, sampler, decoder = prompt_of(master)
    alone = []
    for seed in (SEED, SEED + 1):
        one = json.loads(json.dumps(prompt))
        one[sampler]["inputs"]["seed"] = seed
        alone.append(pixels(master.run(one)[0]))
    port = int(worker.url.rsplit(":", 1)[1])
    known = {"worker_id": WORKER, "name": "worker", "host": "127.0.0.1", "port": port, "cuda_device": 0}
    post(master, "/distributed/config/update_worker", {**known, "enabled": True, "type": "remote"})
    post(master, "/distributed/config/update_master", {"host": "127.0.0.1"})

    both = json.loads(json.dumps(prompt))
    both["900"] = {"class_type": "DistributedSeed", "inputs": {"seed": SEED}}
    both["901"] = {"class_type": "DistributedCollector", "inputs": {"images": [decoder, 0], "load_balance": False}}
    both[sampler]["inputs"]["seed"] = ["900", 0]
    for id_, node in both.items():
        if id_ != "901":
            for name, value in node["inputs"].items():
                if value == [decoder, 0]:
                    node["inputs"][name] = ["901", 0]
    queued = post(master, "/distributed/queue", {"prompt": both, "client_id": "troupe", "enabled_worker_ids": [WORKER]})
    assert queued["worker_count"] == 1 and not queued["node_errors"]
    entry = finished(master, queued["prompt_id"])
    assert entry["status"]["status_str"] == "success", entry["status"]
    saved = [
        pixels(master.base / "output" / image["subfolder"] / image["filename"])
        for outputs in entry["outputs"].values()
        for image in outputs.get("images", ())
        if image["type"] == "output"
    ]
    assert len(saved) == 2 and (alone[0] != alone[1]).any()
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(alone, saved, strict=True)), "a PNG on the way"
