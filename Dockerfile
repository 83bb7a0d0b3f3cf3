# docs/install.md says how it is built and run. The defaults are for a CPU.
ARG BASE=python:3.12-slim
FROM ${BASE}

# A CUDA base has no Python.
RUN if ! python3 -c 'import ensurepip' 2>/dev/null; then \
      apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv \
      && rm -rf /var/lib/apt/lists/*; \
    fi
RUN python3 -m venv /opt/vaopd
ENV PATH=/opt/vaopd/bin:$PATH

# The lock first: a change of the code alone keeps these layers.
COPY requirements /build/requirements
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --require-hashes --requirement /build/requirements/pip.txt \
    && pip install --no-cache-dir --no-deps --require-hashes --requirement /build/requirements/run.txt \
    && pip install --no-cache-dir --index-url ${TORCH_INDEX} --requirement /build/requirements/torch.txt
COPY pyproject.toml README.md LICENSE /build/
COPY src /build/src
RUN pip install --no-cache-dir --no-deps --no-build-isolation /build && rm -rf /build

# As in the Makefile: without them glibc returns large blocks at once, which is slow.
ENV MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=8000000000 TOKENIZERS_PARALLELISM=false
# A user that --user gives has no home.
ENV MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --create-home --uid 10001 vaopd && install --directory --owner vaopd /work
USER vaopd
WORKDIR /work
ENTRYPOINT ["vaopd"]
CMD ["--help"]
