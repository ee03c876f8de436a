"""scripts/pretrain.py on a backbone of four convolutions, for jobs in which it does not matter."""

import stand_in_backbone
import tiny_script

from mcl_jax.models import encoder

if __name__ == "__main__":
    encoder.make_backbone = stand_in_backbone.make_stand_in
    tiny_script.run("pretrain.py")
