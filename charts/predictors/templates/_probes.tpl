{{/* The three probes: (list root model). KServe fills in {{.Name}}, which Helm must leave alone. A pod of two models is ready when both are. */}}
{{- define "predictors.probes" -}}
{{- $probes := (last .).probes -}}
{{- $ready := ternary "/v2/health/ready" "/v2/models/{{.Name}}/ready" (not (empty (last .).colocated)) -}}
{{- $port := include "predictors.healthPort" (first .) -}}
startupProbe:
  httpGet:
    path: {{ $ready | toYaml }}
    port: {{ $port }}
  periodSeconds: {{ int $probes.startup.periodSeconds }}
  timeoutSeconds: {{ int $probes.startup.timeoutSeconds }}
  failureThreshold: {{ divf (float64 $probes.startup.budgetSeconds) (float64 $probes.startup.periodSeconds) | ceil | int }}
readinessProbe:
  httpGet:
    path: {{ $ready | toYaml }}
    port: {{ $port }}
  periodSeconds: {{ int $probes.readiness.periodSeconds }}
  timeoutSeconds: {{ int $probes.readiness.timeoutSeconds }}
  failureThreshold: {{ int $probes.readiness.failureThreshold }}
livenessProbe:
  httpGet:
    path: /v2/health/live
    port: {{ $port }}
  periodSeconds: {{ int $probes.liveness.periodSeconds }}
  timeoutSeconds: {{ int $probes.liveness.timeoutSeconds }}
  failureThreshold: {{ int $probes.liveness.failureThreshold }}
  terminationGracePeriodSeconds: {{ int $probes.liveness.graceSeconds }}
{{- end }}
