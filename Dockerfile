# CPU:  docker build -t alignzeg .
# CUDA: docker build -t alignzeg --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
# Then: docker run --rm -v "$PWD/output:/alignzeg/output" alignzeg demo
# Page: docker run --rm -p 127.0.0.1:7860:7860 -v "$PWD/output:/alignzeg/output" alignzeg web --weights output/model_final.pth
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
# The page of `alignzeg web` is reached from outside of the container; -p says from where.
ENV GRADIO_SERVER_NAME=0.0.0.0
EXPOSE 7860
ENTRYPOINT ["alignzeg"]
CMD ["--help"]
