rule prepare:
    "Reads a data set's raw files, checks them, and writes sequences, split and data card."
    output:
        "data/{dataset}/{protocol}/dataset.json",
    log:
        "data/{dataset}/{protocol}/prepare.log",
    threads: 2
    shell:
        "{BENCHMARK} prepare {wildcards.dataset} --protocol {wildcards.protocol} 2> >(tee {log:q} >&2)"


rule tokenize:
    "Turns the items' texts into tokens, once a data set and text setting."
    input:
        data="data/{dataset}/{protocol}/dataset.json",
        run=lambda wildcards: ancient(
            f"{RESULTS}/runs/{TOKENIZING_RUN['data/{dataset}/{protocol}/{tokens}/tokens.json'.format(**wildcards)]}/run.yaml"
        ),
    output:
        "data/{dataset}/{protocol}/{tokens}/tokens.json",
    log:
        "data/{dataset}/{protocol}/{tokens}.log",
    threads: 2
    shell:
        "{BENCHMARK} tokenize {input.run:q} 2> >(tee {log:q} >&2)"


rule images:
    "Decodes and resizes the items' pictures, once a data set and image setting."
    input:
        data="data/{dataset}/{protocol}/dataset.json",
        run=lambda wildcards: ancient(
            f"{RESULTS}/runs/{IMAGES_RUN['data/{dataset}/{protocol}/{images}/images.json'.format(**wildcards)]}/run.yaml"
        ),
    output:
        "data/{dataset}/{protocol}/{images}/images.json",
    log:
        "data/{dataset}/{protocol}/{images}.log",
    shell:
        "{BENCHMARK} images {input.run:q} 2> >(tee {log:q} >&2)"
