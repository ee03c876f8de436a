"""scripts/pretrain.py with the tests' smallest networks: a process of a job, quick to compile."""

import tiny_script

if __name__ == "__main__":
    tiny_script.run("pretrain.py")
