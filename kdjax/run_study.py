"""Trains all runs of a study and prints its table: python -m kdjax.run_study --config=configs/studies/quickstart.py"""

from kdjax import cli

cli.define_common_flags()
cli.define_config_flag()


def main() -> None:
    """Runs the study that the flags name; the table is also written to <store>/report.md."""
    from kdjax.reporting.study import Score, study_report
    from kdjax.store import Store
    from kdjax.studies.cross import make_jobs, run_jobs

    study, store = cli.FLAGS.config, Store(cli.FLAGS.store)
    jobs = make_jobs(study)
    results = run_jobs(jobs, store, cli.FLAGS.data_dir, cli.job_counter(len(jobs)))
    scores = [
        Score(job.student, job.teacher, job.seed, job.split, job.losses, result, job.published)
        for job, result in zip(jobs, results, strict=True)
    ]
    report = study_report(study.title, study.baseline, study.contrasts, scores)
    print(f"\n{report}\nThis table is in {store.write_text('report.md', report)}.")


if __name__ == "__main__":
    cli.run(main)
