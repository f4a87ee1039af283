# Every target sets up what it needs: a fresh machine needs python3 (3.11 or later), pip and make.
PYTHON ?= python3
PYTEST ?= -q
# One process for each core. An idle process takes tests from a busy one.
XDIST ?= -n auto --dist worksteal
STAMP := .venv/.ready
BIN := $(CURDIR)/.venv/bin
EXTRAS := train,rl,eval,video,maze,recon,dev

.PHONY: setup demo test test-slow lint minecraft clean

setup: $(STAMP)

# Runs again only after what it depends on has changed. The install is editable: changed code needs no new one.
$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "wmgym needs Python 3.11 or later, found " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --prefer-binary --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@.venv/bin/python -m wmgym.envs.memory_maze.gl >/dev/null 2>&1 \
		|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq libosmesa6; } \
		|| echo "Memory Maze has nothing to draw with: its tests will be skipped. Install libosmesa6 or libegl1."
	@touch $@

# Minecraft's own blocks, by npm into the user's data folder. Tests that need them run from then on.
minecraft: setup
	.venv/bin/wmgym minecraft install

demo: setup
	.venv/bin/wmgym demo --out demo

test: setup
	.venv/bin/python -m pytest $(PYTEST) $(XDIST) -m "not slow"

test-slow: setup
	.venv/bin/python -m pytest $(PYTEST) -m slow

# mypy reads the installed package, because only there envs/ is called wmgym.envs.
lint: setup
	.venv/bin/ruff check .
	@rm -rf build
	@.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --target build/installed .
	cd build/installed && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache --python-executable $(BIN)/python -p wmgym

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
