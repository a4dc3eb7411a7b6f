# Snakemake takes no option names of one letter, so that A and B are called `results` and `against` here.
SIDES = [str(config[side]) for side in ("results", "against") if side in config]
GAINS = f" --reference {shlex.quote(str(config['reference']))}" if "reference" in config else ""
COMPARE = f"{BENCHMARK} compare {' '.join(map(shlex.quote, SIDES))}{GAINS} --out {RESULTS}/compare"
if len(SIDES) < 2:
    COMPARE = "echo 'error: snakemake compare needs two sides: --config results=A against=B' >&2; exit 1"


# Neither rule has an output: they are done whenever they are asked for, and what they write stays when numbers deviate.
rule compare:
    "Says of every number of --config results=... whether it reproduces that of against=..., and fails where one does not."
    input:
        SIDES,
    params:
        command=COMPARE,
    shell:
        "{params.command}"


rule leaderboard:
    "Ranks the methods of the finished and submitted runs of the preset."
    params:
        preset=shlex.quote(PRESET),
    shell:
        "{BENCHMARK} leaderboard --preset {params.preset}"
