"""The page at `/`: choose a video, watch it being read, ask about it.

mount.py puts the page into the server. layout.py draws it with Gradio, events.py answers its events, and assets/ has
its scripts. guard.py stands before Gradio and lets through only what the page needs. routes.py takes uploads and
shows videos. visitors.py knows the visitors, tabs.py their open windows, talks.py their conversations, and
watching.py the readings of their videos.
"""
