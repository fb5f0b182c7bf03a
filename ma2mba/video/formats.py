"""Which kinds of files are read as videos: FFmpeg's demuxers by name, and what the others read, for messages.

A demuxer is listed if it reads videos from one file and opens nothing else. FFmpeg refuses all others before they read
anything: playlists, lists of files and stream descriptions open what they name; image sequences open a whole folder;
terminal text would turn every .txt file into a video.
"""

VIDEO_DEMUXERS = (
    "mov,matroska,avi,mpegts,mpeg,asf,asf_o,flv,live_flv,kux,ogg,mxf,nut,rm,ivr,wtv,gxf,lxf,nsv,nuv,pva,dhav,ty,"
    "gif,apng,jpegxl_anim,swf,flic,roq,smjpeg,filmstrip,bink,smk,"
    "dv,h261,h263,h264,hevc,vvc,evc,m4v,mpegvideo,av1,obu,ivf,vc1,vc1test,cavsvideo,avs2,avs3,dirac,dnxhd,"
    "mjpeg,mjpeg_2000,yuv4mpegpipe"
)
"""Containers, then animations, then raw streams of one codec, as FFmpeg's `format_whitelist` takes them."""
SUBTITLES = (
    "aqtitle,ass,jacosub,lrc,mcc,microdvd,mpl2,mpsub,pjs,realtext,sami,scc,srt,stl,subviewer,subviewer1,sup,"
    "tedcaptions,vobsub,vplayer,webvtt"
)
NO_VIDEOS = {
    "hls": "a playlist (HLS)",
    "dash": "a playlist (DASH)",
    "webm_dash_manifest": "a playlist (DASH)",
    "imf": "a playlist (IMF)",
    "concat": "a list of files (ffconcat)",
    "sdp": "a description of a network stream (SDP)",
    "rtsp": "a network stream (RTSP)",
    "rtp": "a network stream (RTP)",
    "ffmetadata": "a list of metadata",
    "lavfi": "a description of filters",
    "tty": "text",
    "bin": "text",
    "xbin": "text",
    "adf": "text",
    "idf": "text",
    "image2": "a still picture",
}


def refusal(demuxer: str) -> str:
    """Return what a file of a demuxer that is not in VIDEO_DEMUXERS is, in a few words."""
    if demuxer in SUBTITLES.split(","):
        return "text of subtitles: it has no video stream"
    if demuxer.endswith("_pipe"):
        return f"{NO_VIDEOS['image2']}, not a video"
    return f"{NO_VIDEOS.get(demuxer, f'a file of the format {demuxer}')}, not a video"
