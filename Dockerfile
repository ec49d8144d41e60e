# Two images: `--target cpu` and `--target cuda`; docs/images.md says how they are made and used.
# Everything comes from one Debian release: what the binary links against is what lies in the image. It is the older one
# because its C library (2.36) is no newer than that of the CUDA image (2.39).

FROM rust:1.95.0-slim-bookworm AS rust
# What scripts/setup.sh installs for building. Versions are those of the Debian release.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    apt-get update \
    && apt-get install -y --no-install-recommends build-essential cmake libssl-dev nasm pkg-config
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo install cargo-chef --locked --version 0.1.78
WORKDIR /build

# The dependencies, which compile for half an hour, are a layer of their own: only another Cargo.lock, or other
# features, make it anew.
FROM rust AS plan
COPY Cargo.toml Cargo.lock ./
# cargo-chef leaves out benches without a file, and Cargo insists on them.
COPY benches benches
COPY src src
RUN cargo chef prepare --recipe-path recipe.json

FROM rust AS build
COPY --from=plan /build/recipe.json ./
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo chef cook --release --locked --bin feedlens --recipe-path recipe.json
COPY Cargo.toml Cargo.lock ./
# Compiled in: the defaults, and Chinese-CLIP's vocabulary.
COPY config config
COPY models/small/vocab.txt models/small/
COPY src src
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo build --release --locked --bin feedlens \
    && strip -o /feedlens target/release/feedlens

FROM python:3.13-slim-bookworm AS onnxruntime
WORKDIR /build
COPY deploy/image/wheel.sh deploy/image/onnxruntime-*.txt ./

FROM onnxruntime AS onnxruntime-cpu
RUN ./wheel.sh onnxruntime-cpu.txt /onnxruntime

FROM onnxruntime AS onnxruntime-cuda
RUN ./wheel.sh onnxruntime-cuda.txt /onnxruntime

FROM build AS rootfs
COPY deploy/image/rootfs.sh ./
COPY --from=onnxruntime-cpu /onnxruntime /onnxruntime
RUN ./rootfs.sh /rootfs /feedlens /onnxruntime/libonnxruntime.so \
    # The CUDA image has a C library of its own, and neither OpenSSL nor authorities.
    && mkdir /openssl \
    && cp /rootfs/lib/*/libssl.so.3 /rootfs/lib/*/libcrypto.so.3 /openssl

FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04 AS cuda
COPY --from=onnxruntime-cuda /onnxruntime /usr/lib/onnxruntime
COPY --from=rootfs /openssl /usr/lib/feedlens
COPY --from=rootfs /rootfs/etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=rootfs --chown=65532:65532 /rootfs/data /data
COPY LICENSE /usr/share/doc/feedlens/LICENSE
COPY models/small /usr/share/feedlens/models/small
COPY demo /usr/share/feedlens/demo
COPY deploy/image/cuda.toml /etc/feedlens/feedlens.toml
COPY --from=build /feedlens /feedlens
ENV LD_LIBRARY_PATH=/usr/lib/feedlens:${LD_LIBRARY_PATH} \
    ORT_DYLIB_PATH=/usr/lib/onnxruntime/libonnxruntime.so \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# The defaults name the bundled model and feed by relative paths.
WORKDIR /usr/share/feedlens
USER 65532:65532
EXPOSE 8080 9090
HEALTHCHECK --interval=15s --timeout=30s --start-period=2m --retries=3 \
    CMD ["/feedlens", "ready", "--config", "/etc/feedlens/feedlens.toml"]
ENTRYPOINT ["/feedlens"]
CMD ["demo", "--config", "/etc/feedlens/feedlens.toml"]
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="feedlens (CUDA)" \
      org.opencontainers.image.description="Makes a social-media feed searchable while it arrives: Kafka, CLIP in ONNX Runtime, Qdrant" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM scratch AS cpu
COPY --from=rootfs /rootfs /
COPY --from=onnxruntime-cpu /onnxruntime /usr/lib/onnxruntime
COPY LICENSE /usr/share/doc/feedlens/LICENSE
COPY models/small /usr/share/feedlens/models/small
COPY demo /usr/share/feedlens/demo
COPY deploy/image/cpu.toml /etc/feedlens/feedlens.toml
COPY --from=build /feedlens /feedlens
ENV ORT_DYLIB_PATH=/usr/lib/onnxruntime/libonnxruntime.so \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# The defaults name the bundled model and feed by relative paths.
WORKDIR /usr/share/feedlens
USER 65532:65532
EXPOSE 8080 9090
HEALTHCHECK --interval=15s --timeout=30s --start-period=2m --retries=3 \
    CMD ["/feedlens", "ready", "--config", "/etc/feedlens/feedlens.toml"]
ENTRYPOINT ["/feedlens"]
CMD ["demo", "--config", "/etc/feedlens/feedlens.toml"]
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="feedlens" \
      org.opencontainers.image.description="Makes a social-media feed searchable while it arrives: Kafka, CLIP in ONNX Runtime, Qdrant" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
