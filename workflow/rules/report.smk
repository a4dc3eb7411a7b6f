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


rule report:
    "Writes one HTML file that shows all tables of the preset with their charts, and works offline."
    input:
        [table_files(name) for name in PLANS],
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
