"""Watch a video with a random model of the demo's size and print this process's peak of memory in MB.

With --live after the video's name, watch it as a source that ends 1 s after its last byte.
"""

import resource
import sys
from pathlib import Path

from data_prep.toy.words import build_tokenizer
from ma2mba.inference.chat import VideoChat
from ma2mba.inference.live import LiveWatch
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.video.live import LiveStream

if __name__ == "__main__":
    language = Mamba2Config(d_model=96, n_layer=4, d_state=32, headdim=32, ssd_block=32, vocab_size=128)
    vision = ClipConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
    )
    model = VideoMa2mba(ModelConfig(language_model=language, vision=vision))
    chat = VideoChat(model, build_tokenizer())
    if sys.argv[2:] == ["--live"]:
        with LiveStream(sys.argv[1], 1) as stream, LiveWatch(chat, stream, lambda _: None) as watch:
            watch.wait_for_end()
            with watch.so_far() as so_far:
                watched = so_far.watched[0]
    else:
        watched = chat.watch(Path(sys.argv[1]))
    print(watched.frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
