rule table:
    "Computes a table with intervals and tests from the ranks of its runs, and prints it."
    input:
        results=lambda wildcards: [path for run in PLANS[wildcards.table].runs() for path in result_files(run)],
    output:
        RESULTS + "/{table}.csv",
        RESULTS + "/{table}.md",
        RESULTS + "/{table}.tex",
        report(
            RESULTS + "/{table}.html",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
    params:
        options=OPTIONS,
        plan=lambda wildcards: plan_digest(wildcards.table),  # other rows, seeds or titles make another table
    shell:
        "{BENCHMARK} table {wildcards.table} {params.options}"


rule breakdown:
    "Computes a table's results for cold, tail, middle and head items."
    input:
        results=lambda wildcards: [path for run in PLANS[wildcards.table].runs() for path in result_files(run)],
    output:
        RESULTS + "/breakdown/{table}.csv",
        RESULTS + "/breakdown/{table}.md",
    params:
        options=OPTIONS,
        plan=lambda wildcards: plan_digest(wildcards.table),
    shell:
        "{BENCHMARK} breakdown {wildcards.table} {params.options}"


if "figure3" in PLANS:

    rule scale:
        "Draws results against the number of users trained on, with the data needed to reach the ID model's best."
        input:
            results=[path for run in PLANS["figure3"].runs() for path in result_files(run)],
        output:
            multiext(RESULTS + "/figure3", ".png", ".svg"),
            RESULTS + "/figure3_data_needed.csv",
        params:
            options=OPTIONS,
            plan=plan_digest("figure3"),
        shell:
            "{BENCHMARK} scale figure3 {params.options}"


rule deviations:
    "Writes which settings of each row differ from the paper's, and why."
    output:
        RESULTS + "/deviations.md",
    params:
        options=DEVIATION_OPTIONS,
        plans=lambda wildcards: [plan_digest(name) for name in PLANS],
    shell:
        "{BENCHMARK} deviations {params.options} --tables " + ",".join(PLANS)


rule board:
    "Ranks the methods of the preset's tables, for the report; `snakemake leaderboard` does so of what is there."
    input:
        results=[path for name in PLANS if breakdown_files(name) for run in PLANS[name].runs() for path in result_files(run)],
    output:
        multiext(RESULTS + "/leaderboard", ".csv", ".md", ".html"),
    shell:
        "{BENCHMARK} leaderboard --preset {PRESET:q}"


rule report:
    "Writes one HTML file that shows all tables of the preset with their charts, and works offline."
    input:
        [table_files(name) for name in PLANS],
        [scale_files(name) for name in PLANS],
        data_tables(),
        f"{RESULTS}/deviations.md",
        rules.board.output,
    output:
        report(
            RESULTS + "/report.html", caption="../report/report.rst", category="Report", labels={"page": "all tables"}
        ),
    shell:
        "{BENCHMARK} report --preset {PRESET:q}"


# The names that people type: table7, scaling_item, ...
for _name in PLANS:

    rule:
        name:
            _name
        input:
            table_files(_name),
            scale_files(_name),


# By the number of the paper's table.
for _name, _alias in (("scaling_item", "table5"), ("scaling_user", "table6")):
    if _name in PLANS:

        rule:
            name:
                _alias
            input:
                table_files(_name),
