# dmq's image: the binary, the libraries that it loads, and nothing else: no shell, no package manager, no root.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /source
# The dependencies first, in a layer of their own that only a change of theirs builds anew.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs && cargo build --locked --release --bin dmq
COPY . .
# Cargo goes by dates, and the sources' are older than the empty ones built above.
RUN find src -name '*.rs' -exec touch {} + && cargo build --locked --release --bin dmq
RUN deploy/image-root target/release/dmq /image

FROM scratch
COPY --from=build /image/root /
# An empty folder, made here and not before, so that it belongs to the user: a named volume takes that over.
COPY --from=build --chown=65532:65532 /image/data /var/lib/dmq
ENV PATH=/usr/local/bin
USER 65532:65532
VOLUME /var/lib/dmq
ENTRYPOINT ["dmq"]
CMD ["--help"]
