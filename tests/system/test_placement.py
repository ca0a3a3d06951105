"""Two Ray nodes: the ranks of a stage share a node, the stages land on different ones, the tokens stay."""

import json
import subprocess
import sys

from server import environment

PROGRAM = """
import json
import ray
from ray.cluster_utils import Cluster
from rayline.deploy.llm import LLM
from rayline.protos.types import SamplingParams

prompt, params = "def fibonacci(n):", SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
options = {"dtype": "float32", "threads": 1, "max_model_len": 256}
with LLM(**options) as llm:
    alone = llm.generate([prompt], params)[0].choices[0].token_ids
cluster = Cluster()
for _ in range(2):  # either node holds one stage of two ranks, neither holds two
    cluster.add_node(num_cpus=3, object_store_memory=80_000_000, include_dashboard=False)
ray.init(address=cluster.address, log_to_driver=False)
with LLM(tp=2, pp=2, launcher="ray", **options) as llm:
    nodes = llm.launcher.nodes()
    together = llm.generate([prompt], params)[0].choices[0].token_ids
ray.shutdown()
cluster.shutdown()
print(json.dumps({"nodes": nodes, "equal": alone == together}))
"""


def test_a_stage_stays_on_one_node_and_stages_spread_over_two() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**environment(), "RAY_AUTH_MODE": "disabled"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    nodes = answer["nodes"]
    assert nodes["0"] == nodes["1"]
    assert nodes["2"] == nodes["3"]
    assert nodes["0"] != nodes["2"]
    assert answer["equal"]
