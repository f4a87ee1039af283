# docs/containers.md says how to build and run this image.
FROM python:3.11-slim-bookworm

# libegl1 and libgl1-mesa-dri render Memory Maze without a window; libosmesa6 does where EGL finds no device.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make libegl1 libgl1 libgl1-mesa-dri libosmesa6 \
    && rm -rf /var/lib/apt/lists/*

# The folder is made here, because WORKDIR would make it for root.
RUN useradd --create-home wmgym && install --directory --owner=wmgym --group=wmgym /opt/wmgym
USER wmgym
WORKDIR /opt/wmgym
COPY --chown=wmgym:wmgym . .

# Options of `docker build --build-arg`. pip reads those whose names begin with PIP_ from its environment.
ARG EXTRAS=train,rl,eval,video,maze,recon
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN PIP_NO_CACHE_DIR=1 make setup EXTRAS="$EXTRAS"

# "graphics" makes NVIDIA's runtime mount its EGL, which is not in the default.
ENV PATH=/opt/wmgym/.venv/bin:$PATH \
    MPLCONFIGDIR=/tmp/matplotlib \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics

CMD ["make", "demo"]
