#!/usr/bin/env bash
# Writes the PrometheusRule of Kubernetes anew out of observability/alerts.yml; a test tells when it is behind.
set -euo pipefail
cd "$(dirname "$0")/.."
{
  cat <<'HEAD'
# Made by scripts/prometheusrule.sh out of observability/alerts.yml: change that, and run the script.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: feedlens
  labels:
    app.kubernetes.io/name: feedlens
spec:
HEAD
  sed -n '/^groups:/,$p' observability/alerts.yml | sed 's/^\(.\)/  \1/'
} > k8s/components/monitoring/prometheusrule.yaml
