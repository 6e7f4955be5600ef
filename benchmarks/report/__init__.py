"""The report: the jobs, the processes that measure them, the bars, and how all of it is shown."""
