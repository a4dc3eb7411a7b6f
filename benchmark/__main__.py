"""`python -m benchmark`: one verb a workflow rule."""

from benchmark.cli import main

main()
