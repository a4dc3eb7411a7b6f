"""The runs that the configuration resolves to; every mistake in it is reported before anything starts."""

import hashlib
import shlex
import sys

from benchmark.data.images import ImageSettings, images_folder
from benchmark.data.preset_data import load_preset_data
from benchmark.data.sources import find_definition
from benchmark.data.text import TextSettings, tokens_folder
from benchmark.errors import UserError
from benchmark.experiments import Configuration

BENCHMARK = f"{shlex.quote(sys.executable)} -m benchmark"  # the environment that snakemake itself runs in
KNOWN_OPTIONS = {
    "preset", "tables", "seeds", "overrides", "results", "against", "reference",
    "mirror", "accept_terms", "on_bad_rows", "on_other_counts",
}


def whole_numbers(text):
    try:
        return [int(number) for number in str(text).split(",")]
    except ValueError:
        raise UserError(f"--config seeds={text} is not a list of whole numbers such as seeds=1,2,3")


def planned():
    """The tables asked for, each with its runs."""
    if unknown := sorted(set(config) - KNOWN_OPTIONS):
        raise UserError(f"--config has no option {unknown[0]!r}; it has: {', '.join(sorted(KNOWN_OPTIONS))}")
    configuration = Configuration(Path("config"), Path(config["overrides"]) if "overrides" in config else None)
    configuration.preset(PRESET)
    names = configuration.tables(PRESET)
    if "tables" in config:
        wanted = str(config["tables"]).split(",")
        if absent := sorted(set(wanted) - set(names)):
            raise UserError(f"preset {PRESET} has no table {absent[0]!r}; it has: {', '.join(names)}")
        names = wanted
    return {name: configuration.plan(name, PRESET, SEEDS) for name in names}


PRESET = str(config.get("preset", "laptop"))
try:
    SEEDS = whole_numbers(config["seeds"]) if "seeds" in config else None
    PLANS = planned()
    PRESET_DATA = load_preset_data(Path("config/data.yaml")).get(PRESET)
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)

RUNS = {run.id: run for plan in PLANS.values() for run in plan.runs()}
TABLE_OF = {run.id: name for name, plan in PLANS.items() for run in plan.runs()}
RESULTS = f"results/{PRESET}"
OPTIONS = f"--preset {shlex.quote(PRESET)}"
if SEEDS is not None:
    OPTIONS += f" --seeds {','.join(map(str, SEEDS))}"
DEVIATION_OPTIONS = f"--preset {shlex.quote(PRESET)}"
if "overrides" in config:
    DEVIATION_OPTIONS += f" --overrides {shlex.quote(str(config['overrides']))}"
    OPTIONS += f" --overrides {shlex.quote(str(config['overrides']))}"


def table_files(name):
    return [f"{RESULTS}/{name}.{kind}" for kind in ("csv", "md", "tex", "html")]


def breakdown_files(name):
    """Only where ranks are the result, and not predicted clicks."""
    ranked = all(run.training.click is None for run in PLANS[name].runs())
    return [f"{RESULTS}/breakdown/{name}.md"] if ranked else []


def scale_files(name):
    """Figure 3 is a drawing, and a table of its points."""
    return [f"{RESULTS}/figure3.svg"] if name == "figure3" else []


def plan_digest(name):
    return hashlib.sha256(PLANS[name].model_dump_json().encode()).hexdigest()


def data_folder(run):
    return f"data/{run.dataset}/{run.protocol}"


def token_files(run):
    if run.text is None:
        return []
    return [str(tokens_folder(Path(data_folder(run)), TextSettings.from_mapping(run.text)) / "tokens.json")]


def image_files(run):
    if run.images is None:
        return []
    return [str(images_folder(Path(data_folder(run)), ImageSettings.from_mapping(run.images)) / "images.json")]


def source_files(run):
    """What a run needs of the run that it starts from."""
    if run.starts_from is None:
        return []
    folder = f"{RESULTS}/runs/{run.starts_from.run}"
    weights = [f"{folder}/model.safetensors"] if run.starts_from.parts != [] else []
    return weights + cached_files(run)


def cached_files(run):
    """The item embeddings of another run that a run reads."""
    if run.starts_from is None or not run.starts_from.cached_items:
        return []
    return [f"{RESULTS}/runs/{run.starts_from.run}/item_embeddings.npy"]


def result_files(run):
    """What a table reads of a run: its ranks, or its predicted clicks."""
    names = ["ranks.parquet", "metrics.csv"] if run.training.click is None else ["clicks.parquet", "serving.csv"]
    return [f"{RESULTS}/runs/{run.id}/{name}" for name in [*names, "provenance.json"]]


# How a run is spread over hosts and GPUs, as its execution settings say; benchmark/launch.py starts it so. `gpus` is a
# node's, so that --resources gpus=8 is what one host has. The other resources are read by the Slurm executor alone: an
# empty `mpi` still keeps it from starting the job in a step of its own, and tasks_per_gpu=0 from asking for tasks by GPU.
def execution(wildcards):
    return RUNS[wildcards.run].execution


def nodes(wildcards):
    return execution(wildcards).nodes


def processes(wildcards):
    return execution(wildcards).processes


def threads_a_node(wildcards):
    return execution(wildcards).threads * processes(wildcards)


def gpus_a_node(wildcards):
    return processes(wildcards) if execution(wildcards).device != "cpu" else 0


def one_gpu(wildcards):
    return min(1, gpus_a_node(wildcards))


def gres(gpus):
    """The executor's name for `gpus(wildcards)` GPUs."""
    return lambda wildcards: f"gpu:{gpus(wildcards)}" if gpus(wildcards) else ""


def mpi(wildcards):
    return "srun" if nodes(wildcards) > 1 else ""


# One run whose settings a token store is made from; all runs that share it say the same of it.
TOKENIZING_RUN = {path: run.id for run in RUNS.values() for path in token_files(run)}
IMAGES_RUN = {path: run.id for run in RUNS.values() for path in image_files(run)}


def store_resources(runs, store):
    """Of a rule that makes a store: a run that shares it, and how it is resolved. runs: store -> run. The run's settings
    are no input: a new run with the same ones, such as one of another seed, would have the store made anew, and then all
    finished runs that read it. So they are resources, as those of rule resolve."""
    return {
        "sharing": lambda wildcards: runs[store.format(**wildcards)],
        "table": lambda wildcards: TABLE_OF[runs[store.format(**wildcards)]],
        "options": OPTIONS,
    }


def store_command(verb, store):
    """Makes a store, named by the wildcard `store`, with the settings of the run in its resources."""
    settings = "data/{wildcards.dataset}/{wildcards.protocol}/{wildcards." + store + "}.yaml"
    resolve = "{BENCHMARK} resolve {resources.sharing:q} --table {resources.table} {resources.options} --out " + settings
    return resolve + " && {BENCHMARK} " + f"{verb} {settings}" + " 2> >(tee {log:q} >&2)"


wildcard_constraints:
    run="[A-Za-z0-9_.-]+",
    dataset="[A-Za-z0-9_-]+",
    protocol="hllm|meta|temporal",
    table="|".join(PLANS),
    tokens="tokens-[0-9a-f]+",
    images="images-[0-9a-f]+",
