rule resolve:
    "Writes every setting of a run beside its results."
    output:
        RESULTS + "/runs/{run}/run.yaml",
    params:
        table=lambda wildcards: TABLE_OF[wildcards.run],
        seeds=SEEDS,
    shell:
        "{BENCHMARK} resolve {wildcards.run} --table {params.table} --preset {PRESET} {params.seeds} --out {output:q}"


rule train:
    "Trains a method, or continues where it stopped, and keeps the weights of the best epoch."
    input:
        run=ancient(RESULTS + "/runs/{run}/run.yaml"),
        data=lambda wildcards: f"{data_folder(RUNS[wildcards.run])}/dataset.json",
        tokens=lambda wildcards: token_files(RUNS[wildcards.run]),
    output:
        RESULTS + "/runs/{run}/model.safetensors",
        RESULTS + "/runs/{run}/training.csv",
        RESULTS + "/runs/{run}/provenance.json",
    log:
        RESULTS + "/runs/{run}/train.log",
    params:
        processes=processes,
    threads: threads_a_node
    priority: lambda wildcards: 10 if RUNS[wildcards.run].text else 0  # the slow ones first
    resources:
        nodes=nodes,
        gpus=gpus_a_node,
        gres=gres,
        mpi=mpi,
        tasks=nodes,
        tasks_per_gpu=0,
    shell:
        "exec {BENCHMARK} train {input.run:q} --nodes {resources.nodes} --processes {params.processes}"
