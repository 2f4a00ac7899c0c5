# Everything runs in .venv, which the first target to need it makes.
.DEFAULT_GOAL := help
.PHONY: help demo test bench lint clean bootstrap

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: bootstrap ## show a backup and a restore of a VictoriaLogs that is being written to
	.venv/bin/python tests/demo.py

test: bootstrap ## run all tests, the style checks among them (PYTEST_ARGS for pytest)
	.venv/bin/python -m pytest $(PYTEST_ARGS)

bench: bootstrap ## measure beside everything else one could use (hours; needs root and 25 GB)
	for name in stop_window zero_downtime whole_run million start_up; do \
		.venv/bin/python benchmarks/$$name.py --workdir .cache/bench \
			--json benchmarks/results/$$(echo $$name | tr _ -).json || exit 1; \
	done
	for name in stop-window zero-downtime; do \
		.venv/bin/python benchmarks/chart.py \
			benchmarks/results/$$name.json benchmarks/results/$$name.svg || exit 1; \
	done

lint: bootstrap ## run the style checks alone
	.venv/bin/pre-commit run --all-files

clean: ## remove .venv and what the tools left
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

bootstrap:
	@bash tests/setup/bootstrap.sh
