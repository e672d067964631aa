"""How a process of ours ends, beside 0; slurm/README.md says what each asks for."""

FAILED = 1
REFUSED = 2  # the request cannot be met: the same command fails again
CONTINUE = 75  # EX_TEMPFAIL of sysexits.h: stopped on request, the same command goes on
STALLED = 124  # as timeout(1) has it: nothing moved for too long, the same command may go on
INTERRUPTED = 130  # ended at once by a person
