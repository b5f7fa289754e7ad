"""launch.py whose ranks take ten silent seconds of another one for its end, and not five minutes."""

from fedsim.comm import watch
from fedsim.launch import main

SILENCE_SECONDS = 10.0

if __name__ == "__main__":
    watch.POLL_SECONDS, watch.BEAT_SECONDS, watch.SILENCE_SECONDS = 0.2, 1.0, SILENCE_SECONDS
    main()
