def prepared(protocols=None):
    """The cards of the preset's data sets (config/data.yaml)."""
    wanted = PRESET_DATA.datasets if PRESET_DATA else {}
    return [f"data/{name}/{p}/dataset.json" for name, all in wanted.items() for p in all if protocols in (None, p)]


def fetched(wildcards):
    """What says that a data set's raw files are there, for data sets that are fetched."""
    definition = find_definition(Path("config/datasets.yaml"), wildcards.dataset)
    return [] if definition.sources is None else [f"data/{wildcards.dataset}/sources.json"]


def option(name, key):
    return f"--{name} {shlex.quote(str(config[key]))}" if key in config else ""


rule download:
    "Fetches a data set's raw files, or finds them in a mirror, and checks them."
    output:
        "data/{dataset}/sources.json",
    log:
        "data/{dataset}/download.log",
    params:
        options=" ".join([option("mirror", "mirror"), option("accept-terms", "accept_terms")]),
    shell:
        "{BENCHMARK} download {wildcards.dataset} {params.options} 2> >(tee {log:q} >&2)"


rule prepare:
    "Reads a data set's raw files, checks them, and writes sequences, split and data card."
    input:
        fetched,
    output:
        "data/{dataset}/{protocol}/dataset.json",
    log:
        "data/{dataset}/{protocol}/prepare.log",
    params:
        options=" ".join([
            option("mirror", "mirror"),
            option("on-bad-rows", "on_bad_rows"),
            option("on-other-counts", "on_other_counts"),
        ]),
    threads: 2
    priority: 20  # many runs wait for it
    shell:
        "{BENCHMARK} prepare {wildcards.dataset} --protocol {wildcards.protocol} {params.options} 2> >(tee {log:q} >&2)"


rule data:
    "Prepares every data set of the preset."
    input:
        prepared(),


def data_tables():
    """Table 1 and figure 5, which are of the preset's data sets; not where some tables alone are asked for."""
    return [] if PRESET_DATA is None or "tables" in config else [f"{RESULTS}/table1.md", f"{RESULTS}/figure5.svg"]


ruleorder: table1 > table


rule table1:
    "Counts of the preset's data sets beside the published ones."
    input:
        prepared(),
    output:
        multiext(RESULTS + "/table1", ".csv", ".md", ".tex", ".html"),
    shell:
        "{BENCHMARK} datasets --preset {PRESET}"


rule figure5:
    "Lengths of the items' texts by tokenizer."
    input:
        prepared("hllm"),
    output:
        RESULTS + "/text_statistics.csv",
        multiext(RESULTS + "/figure5", ".png", ".svg"),
    threads: 2
    shell:
        "{BENCHMARK} text-statistics --preset {PRESET}"


rule tokenize:
    "Turns the items' texts into tokens, once a data set and text setting."
    input:
        "data/{dataset}/{protocol}/dataset.json",
    output:
        "data/{dataset}/{protocol}/{tokens}/tokens.json",
    log:
        "data/{dataset}/{protocol}/{tokens}.log",
    threads: 2
    priority: 20
    resources:
        **store_resources(TOKENIZING_RUN, "data/{dataset}/{protocol}/{tokens}/tokens.json"),
    shell:
        store_command("tokenize", "tokens")


rule images:
    "Decodes and resizes the items' pictures, once a data set and image setting."
    input:
        "data/{dataset}/{protocol}/dataset.json",
    output:
        "data/{dataset}/{protocol}/{images}/images.json",
    log:
        "data/{dataset}/{protocol}/{images}.log",
    priority: 20
    resources:
        **store_resources(IMAGES_RUN, "data/{dataset}/{protocol}/{images}/images.json"),
    shell:
        store_command("images", "images")
