rule resolve:
    "Writes every setting of a run beside its results."
    output:
        RESULTS + "/runs/{run}/run.yaml",
    priority: 30  # before all others, so that the longest trainings are known when the first one starts
    resources:  # no params, whose change makes a rule run again: a run's id tells all of its settings
        table=lambda wildcards: TABLE_OF[wildcards.run],
        options=OPTIONS,
    shell:
        "{BENCHMARK} resolve {wildcards.run} --table {resources.table} {resources.options} --out {output:q}"


rule train:
    "Trains a method, or continues where it stopped, and keeps the weights of the best epoch."
    input:
        run=ancient(RESULTS + "/runs/{run}/run.yaml"),
        data=lambda wildcards: f"{data_folder(RUNS[wildcards.run])}/dataset.json",
        tokens=lambda wildcards: token_files(RUNS[wildcards.run]),
        images=lambda wildcards: image_files(RUNS[wildcards.run]),
        source=lambda wildcards: source_files(RUNS[wildcards.run]),
    output:
        RESULTS + "/runs/{run}/model.safetensors",
        RESULTS + "/runs/{run}/training.csv",
        RESULTS + "/runs/{run}/provenance.json",
    log:
        RESULTS + "/runs/{run}/train.log",
    threads: threads_a_node
    retries: 2  # of a process that was killed or lost: training continues from its state
    priority: lambda wildcards: 10 if RUNS[wildcards.run].text else 0  # the slow ones first
    resources:
        nodes=nodes,
        processes=processes,  # no parameter: another number of them makes no other result
        gpus=gpus_a_node,
        gres=gres(gpus_a_node),
        mpi=mpi,
        tasks=nodes,
        tasks_per_gpu=0,
    shell:
        "exec {BENCHMARK} train {input.run:q} --nodes {resources.nodes} --processes {resources.processes}"


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
    threads: lambda wildcards: execution(wildcards).threads
    resources:
        gpus=one_gpu,
        gres=gres(one_gpu),
        mpi="",
        tasks_per_gpu=0,
    shell:
        "exec {BENCHMARK} embed {input.run:q}"
