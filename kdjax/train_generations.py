"""The same as kdjax.run_study: python -m kdjax.train_generations --config=configs/tolerant_generations.py"""

from kdjax import cli

cli.define_common_flags(cli.AUTO)
cli.define_process_flags()
cli.define_config_flag()
cli.define_trust_flag()
cli.define_executor_flags()

if __name__ == "__main__":
    cli.run(cli.run_study_from_flags)
