# HLLM and its baselines, from raw files to the paper's tables:
#
#   snakemake table7                             the comparison, on this machine (preset laptop)
#   snakemake --config preset=gpu table7         on one GPU
#   snakemake --config seeds=1,2,3 table7        other seeds
#   snakemake --config tables=table7,table8      several tables alone
#   snakemake --config overrides=mine.yaml all   your own settings over all others
#   snakemake report                             one page of all tables: results/<preset>/report.html
#   snakemake --report provenance.html           Snakemake's own report: tables, steps, settings and times
#   snakemake --dry-run table7                   lists the runs
#   snakemake compare --config results=A against=B   whether the numbers of A reproduce those of B (files or run folders)
#   snakemake leaderboard                        the methods of all finished runs
#
# Presets, tables, methods and data sets are files under config/.
from pathlib import Path

report: "workflow/report/workflow.rst"

include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/compare.smk"

localrules: all, resolve, compare, leaderboard  # seconds of work, not worth a place in a cluster's queue


rule all:
    default_target: True
    input:
        [table_files(name) for name in PLANS],
        [scale_files(name) for name in PLANS],
        [breakdown_files(name) for name in PLANS],
        data_tables(),
        f"{RESULTS}/deviations.md",
