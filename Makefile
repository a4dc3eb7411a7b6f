# Two commands for a fresh machine: `make table7` and `make test`. Each does all the set-up it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: table7 test test-slurm lint audit reference lock clean

table7: .venv/.ready
	$(BIN)/snakemake table7

test: .venv/.ready
	$(BIN)/python -m pytest --numprocesses 2

# Minutes on a real Slurm of two nodes on this machine: needs root and Debian's slurmctld slurmd slurm-client munge.
test-slurm: .venv/.ready
	$(BIN)/python -m pytest tests/slurm -m "slurm or not slurm"

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every table and claim of results/reference, from the ranks that are kept there. Leaves no difference in git.
reference: .venv/.ready
	$(BIN)/python -m benchmark reference

# Known vulnerabilities of the locked packages; needs PyPI, and says so where it is not there.
audit: .venv/.ready
	$(BIN)/python .ci/audit.py

# uv does not read pip's configuration, so pip's local wheel folders are handed to it; on most machines there are none.
.venv/.ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 12) else "Python 3.11 or 3.12 is needed, and this is " + sys.version.split()[0] + ": name another one, as in `make PYTHON=python3.12`.")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.lock)"
	DS_BUILD_OPS=0 UV_FIND_LINKS="$${UV_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null || true)}" \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# Resolves pyproject.toml anew. Which build of torch (CPU, CUDA) and so which CUDA packages are right is the machine's affair:
# the local part of its version and the packages that it pins itself are left out.
lock: .venv/.ready
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null || true)}" \
	  $(BIN)/uv pip compile --quiet --universal --no-header --extra dev --no-emit-index-url --no-emit-find-links --no-annotate pyproject.toml --output-file requirements.lock
	sed -i -E '/^(nvidia-|cuda-|triton==|ray==)/d; s/^(torch==[0-9.]+).*/\1/' requirements.lock
	echo "$$($(BIN)/uv --version | sed -E 's/^uv ([0-9.]+).*/uv==\1/')" >> requirements.lock
	sort -u -o requirements.lock requirements.lock

clean:
	rm -rf .venv data results/laptop results/gpu results/paper .snakemake
