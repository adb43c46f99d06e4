# Everything runs in .venv, which the first target makes. PYTHON picks the interpreter: make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
OUT := out

.PHONY: demo gallery browser test slow lint bench clean

# torch first and pinned: the newest build may bring gigabytes of GPU libraries.
$(VENV)/package: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e .
	touch $@

$(VENV)/dev: $(VENV)/package
	$(PIP) -e ".[dev]"
	touch $@

demo: $(VENV)/package
	mkdir -p $(OUT)
	$(BIN)/imagegpt complete examples/chelsea.jpg examples/rocket.jpg --out $(OUT)/demo.png
	@echo "Open $(OUT)/demo.png: input, what the model saw, and what it painted."

# The README's pictures by the embedded model; the same bytes as long as the model is the same.
gallery: $(VENV)/package
	$(BIN)/imagegpt complete examples/chelsea.jpg examples/rocket.jpg --out docs/demo.png
	$(BIN)/imagegpt sample --num 30 --out docs/samples.png

# A browser for the studio's tests, from the system's packages; without one they are skipped, and say so.
browser:
	command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	(test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null) || \
	echo "No Chromium: the studio's browser tests will be skipped."

test: $(VENV)/dev browser
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

slow: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 -q -m slow

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/dev
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) $(OUT) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
