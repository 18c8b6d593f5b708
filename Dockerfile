# lit-lm for CPUs. Runs are kept in the mounted folder:
#
#   docker build --tag lit-lm .
#   docker run --rm --interactive --tty --volume "$PWD:/work" lit-lm fit --config quick
FROM python:3.11-slim

# compiles the engine in C and, in long runs, the training step
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY lit_lm lit_lm
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu .

WORKDIR /work
ENTRYPOINT ["lit-lm"]
CMD ["--help"]
