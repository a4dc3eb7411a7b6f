rule rank:
    "Ranks every user's test item in the full catalogue."
    input:
        run=ancient(RESULTS + "/runs/{run}/run.yaml"),
        model=RESULTS + "/runs/{run}/model.safetensors",
        cache=lambda wildcards: cached_files(RUNS[wildcards.run]),
    output:
        RESULTS + "/runs/{run}/ranks.parquet",
        RESULTS + "/runs/{run}/metrics.csv",
    log:
        RESULTS + "/runs/{run}/rank.log",
    threads: threads_a_node
    resources:
        nodes=nodes,
        processes=processes,
        gpus=gpus_a_node,
        gres=gres(gpus_a_node),
        mpi=mpi,
        tasks=nodes,
        tasks_per_gpu=0,
    shell:
        "exec {BENCHMARK} rank {input.run:q} --nodes {resources.nodes} --processes {resources.processes}"


rule clicks:
    "Predicts the clicks of every test case, and times requests."
    input:
        run=ancient(RESULTS + "/runs/{run}/run.yaml"),
        model=RESULTS + "/runs/{run}/model.safetensors",
        cache=lambda wildcards: cached_files(RUNS[wildcards.run]),
    output:
        RESULTS + "/runs/{run}/clicks.parquet",
        RESULTS + "/runs/{run}/serving.csv",
    log:
        RESULTS + "/runs/{run}/clicks.log",
    threads: lambda wildcards: execution(wildcards).threads
    resources:
        gpus=one_gpu,
        gres=gres(one_gpu),
        mpi="",
        tasks_per_gpu=0,
    shell:
        "exec {BENCHMARK} clicks {input.run:q}"
