"""The runs that the configuration resolves to; every mistake in it is reported before anything starts."""

import shlex
import sys

from benchmark.data.text import TextSettings, tokens_folder
from benchmark.errors import UserError
from benchmark.experiments import Configuration

BENCHMARK = f"{shlex.quote(sys.executable)} -m benchmark"  # the environment that snakemake itself runs in
KNOWN_OPTIONS = {"preset", "seeds"}


def planned():
    if unknown := sorted(set(config) - KNOWN_OPTIONS):
        raise UserError(f"--config has no option {unknown[0]!r}; it has: {', '.join(sorted(KNOWN_OPTIONS))}")
    seeds = None
    if "seeds" in config:
        try:
            seeds = [int(seed) for seed in str(config["seeds"]).split(",")]
        except ValueError:
            raise UserError(f"--config seeds={config['seeds']} is not a list of whole numbers such as seeds=1,2,3")
    configuration = Configuration(Path("config"))
    names = configuration.tables(PRESET)
    configuration.preset(PRESET)
    return {name: configuration.plan(name, PRESET, seeds) for name in names}


PRESET = str(config.get("preset", "laptop"))
try:
    PLANS = planned()
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)

RUNS = {run.id: run for plan in PLANS.values() for run in plan.runs()}
TABLE_OF = {run.id: name for name, plan in PLANS.items() for run in plan.runs()}
RESULTS = f"results/{PRESET}"
SEEDS = f"--seeds {config['seeds']}" if "seeds" in config else ""


def table_files(name):
    return [f"{RESULTS}/{name}.{kind}" for kind in ("csv", "md", "tex", "html")]


def data_folder(run):
    return f"data/{run.dataset}/{run.protocol}"


def token_files(run):
    if run.text is None:
        return []
    return [str(tokens_folder(Path(data_folder(run)), TextSettings.from_mapping(run.text)) / "tokens.json")]


# How a run is spread over hosts and GPUs, as its execution settings say; benchmark/launch.py starts it so. `gpus` is a
# node's, so that --resources gpus=8 is what one host has. The other resources are read by the Slurm executor alone: an
# empty `mpi` still keeps it from starting the job in a step of its own, and tasks_per_gpu=0 from asking for tasks by GPU.
def nodes(wildcards):
    return RUNS[wildcards.run].execution.nodes


def processes(wildcards):
    return RUNS[wildcards.run].execution.processes


def threads_a_node(wildcards):
    execution = RUNS[wildcards.run].execution
    return execution.threads * execution.processes


def gpus_a_node(wildcards):
    execution = RUNS[wildcards.run].execution
    return 0 if execution.device == "cpu" else execution.processes


def gres(wildcards):
    count = gpus_a_node(wildcards)
    return f"gpu:{count}" if count else ""


def mpi(wildcards):
    return "srun" if nodes(wildcards) > 1 else ""


# One run whose settings a token store is made from; all runs that share it say the same of it.
TOKENIZING_RUN = {path: run.id for run in RUNS.values() for path in token_files(run)}


wildcard_constraints:
    run="[A-Za-z0-9_.-]+",
    dataset="[A-Za-z0-9_-]+",
    protocol="hllm|meta",
    table="[a-z0-9_]+",
    tokens="tokens-[0-9a-f]+",
