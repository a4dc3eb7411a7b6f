rule resolve:
    "Writes every setting of a run beside its results."
    output:
        RESULTS + "/runs/{run}/run.yaml",
    params:
        table=lambda wildcards: TABLE_OF[wildcards.run],
        options=OPTIONS,
    shell:
        "{BENCHMARK} resolve {wildcards.run} --table {params.table} {params.options} --out {output:q}"


rule train:
    "Trains a method, or continues where it stopped, and keeps the weights of the best epoch."
    input:
        run=ancient(RESULTS + "/runs/{run}/run.yaml"),
        data=lambda wildcards: f"{data_folder(RUNS[wildcards.run])}/dataset.json",
        tokens=lambda wildcards: token_files(RUNS[wildcards.run]),
        source=lambda wildcards: source_files(RUNS[wildcards.run]),
    output:
        RESULTS + "/runs/{run}/model.safetensors",
        RESULTS + "/runs/{run}/training.csv",
        RESULTS + "/runs/{run}/provenance.json",
    log:
        RESULTS + "/runs/{run}/train.log",
    threads: lambda wildcards: RUNS[wildcards.run].execution.threads
    retries: 2  # a process that was killed or lost; training continues from its state
    priority: lambda wildcards: 10 if RUNS[wildcards.run].text else 0  # the slow ones first
    resources:
        gpus=lambda wildcards: 0 if RUNS[wildcards.run].execution.device == "cpu" else 1,
    shell:
        "{BENCHMARK} train {input.run:q}"


rule embed:
    "Exports the item embeddings of a trained run, for the runs that are trained on them."
    input:
        run=ancient(RESULTS + "/runs/{run}/run.yaml"),
        model=RESULTS + "/runs/{run}/model.safetensors",
    output:
        RESULTS + "/runs/{run}/item_embeddings.npy",
        RESULTS + "/runs/{run}/item_embeddings.json",
    log:
        RESULTS + "/runs/{run}/embed.log",
    threads: lambda wildcards: RUNS[wildcards.run].execution.threads
    resources:
        gpus=lambda wildcards: 0 if RUNS[wildcards.run].execution.device == "cpu" else 1,
    shell:
        "{BENCHMARK} embed {input.run:q}"
