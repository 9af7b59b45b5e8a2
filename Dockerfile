# CPU:  docker build -t alignzeg .
# CUDA: docker build -t alignzeg --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
# Then: docker run --rm -v "$PWD/output:/alignzeg/output" alignzeg demo
ARG BASE=ubuntu:24.04
FROM ${BASE}

RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        git libgl1 libglib2.0-0t64 make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /alignzeg
# The environment changes less often than the code, so it has a layer of its own.
COPY Makefile requirements.lock setup.py pyproject.toml README.md ./
COPY alignzeg/__init__.py alignzeg/__init__.py
RUN make setup
COPY . .
RUN make setup

ENV PATH=/alignzeg/.venv/bin:$PATH
ENTRYPOINT ["alignzeg"]
CMD ["--help"]
