{{/* The three probes: (list model). KServe fills in {{.Name}}, which Helm must leave alone. */}}
{{- define "predictors.probes" -}}
{{- $probes := (first .).probes -}}
startupProbe:
  httpGet:
    path: /v2/models/{{ "{{.Name}}" }}/ready
    port: 8080
  periodSeconds: {{ int $probes.startup.periodSeconds }}
  timeoutSeconds: {{ int $probes.startup.timeoutSeconds }}
  failureThreshold: {{ divf (float64 $probes.startup.budgetSeconds) (float64 $probes.startup.periodSeconds) | ceil | int }}
readinessProbe:
  httpGet:
    path: /v2/models/{{ "{{.Name}}" }}/ready
    port: 8080
  periodSeconds: {{ int $probes.readiness.periodSeconds }}
  timeoutSeconds: {{ int $probes.readiness.timeoutSeconds }}
  failureThreshold: {{ int $probes.readiness.failureThreshold }}
livenessProbe:
  httpGet:
    path: /v2/health/live
    port: 8080
  periodSeconds: {{ int $probes.liveness.periodSeconds }}
  timeoutSeconds: {{ int $probes.liveness.timeoutSeconds }}
  failureThreshold: {{ int $probes.liveness.failureThreshold }}
  terminationGracePeriodSeconds: {{ int $probes.liveness.graceSeconds }}
{{- end }}
