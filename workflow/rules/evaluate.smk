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
    threads: lambda wildcards: RUNS[wildcards.run].execution.threads
    resources:
        gpus=lambda wildcards: 0 if RUNS[wildcards.run].execution.device == "cpu" else 1,
    shell:
        "{BENCHMARK} rank {input.run:q}"
