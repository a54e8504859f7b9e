{{/* Who may call a server, over what, and on which ports: settings, mounts and volumes of every ServingRuntime. */}}

{{/* Secret with the file of API keys; empty where everybody is served. */}}
{{- define "predictors.keysSecret" -}}
{{- if .Values.apiKeys.content -}}
{{ include "predictors.of" (list . "keys") }}
{{- else -}}
{{ .Values.apiKeys.secretName }}
{{- end -}}
{{- end }}

{{/* Port of the probes. */}}
{{- define "predictors.healthPort" -}}
{{ ternary .Values.health.port 8080 (gt (int .Values.health.port) 0) | int }}
{{- end }}

{{/* Port of /metrics. */}}
{{- define "predictors.metricsPort" -}}
{{ ternary .Values.metrics.port 8080 (gt (int .Values.metrics.port) 0) | int }}
{{- end }}

{{/* Name of that port in the pod. */}}
{{- define "predictors.metricsPortName" -}}
{{ ternary "metrics" (ternary "https" "http1" (not (empty .Values.tls.secretName))) (gt (int .Values.metrics.port) 0) }}
{{- end }}

{{- define "predictors.accessEnv" -}}
{{- $keys := include "predictors.keysSecret" . -}}
- name: PREDICTORS_SERVER_HEALTH_PORT
  value: {{ .Values.health.port | int | quote }}
- name: PREDICTORS_SERVER_METRICS_PORT
  value: {{ .Values.metrics.port | int | quote }}
- name: PREDICTORS_ACCESS_OPEN
  value: {{ empty $keys | quote }}
{{- if $keys }}
- name: PREDICTORS_ACCESS_KEYS_FILE
  value: /etc/predictors/keys/{{ .Values.apiKeys.file }}
{{- end }}
{{- with .Values.callers.header }}
- name: PREDICTORS_ACCESS_CALLER_HEADER
  value: {{ . | quote }}
{{- end }}
{{- with .Values.callers.trustedProxies }}
- name: PREDICTORS_ACCESS_TRUSTED_PROXIES
  value: {{ join "," . | quote }}
{{- end }}
{{- if .Values.tls.secretName }}
- name: PREDICTORS_TLS_CERT_FILE
  value: /etc/predictors/tls/tls.crt
- name: PREDICTORS_TLS_KEY_FILE
  value: /etc/predictors/tls/tls.key
{{- end }}
{{- if .Values.tls.clientCaSecretName }}
- name: PREDICTORS_TLS_CLIENT_CA_FILE
  value: /etc/predictors/client-ca/ca.crt
{{- end }}
{{- end }}

{{/* Folders, never single files (`subPath`): the kubelet changes only the content of folders. */}}
{{- define "predictors.accessMounts" -}}
{{- if include "predictors.keysSecret" . }}
- name: keys
  mountPath: /etc/predictors/keys
  readOnly: true
{{- end }}
{{- if .Values.tls.secretName }}
- name: tls
  mountPath: /etc/predictors/tls
  readOnly: true
{{- end }}
{{- if .Values.tls.clientCaSecretName }}
- name: client-ca
  mountPath: /etc/predictors/client-ca
  readOnly: true
{{- end }}
{{- end }}

{{- define "predictors.accessVolumes" -}}
{{- with include "predictors.keysSecret" . }}
- name: keys
  secret:
    secretName: {{ . | toYaml }}
    items:
      - key: {{ $.Values.apiKeys.file | toYaml }}
        path: {{ $.Values.apiKeys.file | toYaml }}
{{- end }}
{{- with .Values.tls.secretName }}
- name: tls
  secret:
    secretName: {{ . | toYaml }}
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
{{- end }}
{{- with .Values.tls.clientCaSecretName }}
- name: client-ca
  secret:
    secretName: {{ . | toYaml }}
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- end }}

{{/* Ports of the container. KServe's Service takes the first as 80 and the others as they are; one whose name has "grpc" or "h2c" is gRPC's. */}}
{{- define "predictors.ports" -}}
- name: {{ .Values.tls.secretName | empty | ternary "http1" "https" }}
  containerPort: 8080
  protocol: TCP
- name: {{ .Values.tls.secretName | empty | ternary "h2c" "grpcs" }}
  containerPort: 8081
  protocol: TCP
{{- if gt (int .Values.health.port) 0 }}
- name: health
  containerPort: {{ int .Values.health.port }}
  protocol: TCP
{{- end }}
{{- if gt (int .Values.metrics.port) 0 }}
- name: metrics
  containerPort: {{ int .Values.metrics.port }}
  protocol: TCP
{{- end }}
{{- end }}

{{/* Paths of gRPC's services, for rules of routes: a rule of HTTP's would lead them to a port without HTTP/2. */}}
{{- define "predictors.grpcMatches" -}}
{{- range list "inference.GRPCInferenceService" "grpc.health.v1.Health" "grpc.reflection.v1.ServerReflection" "grpc.reflection.v1alpha.ServerReflection" }}
- path:
    type: PathPrefix
    value: /{{ . }}
{{- end }}
{{- end }}

{{/* Where a model's REST is answered in the cluster: the Service has port 80, also for TLS: (list root service) */}}
{{- define "predictors.address" -}}
{{- $host := printf "%s.%s.svc" (last .) (include "predictors.namespace" (first .)) -}}
{{ ternary (print "http://" $host) (printf "https://%s:80" $host) (empty (first .).Values.tls.secretName) }}
{{- end }}

{{/* What a pod of `helm test` is told: the key to call with, and that calls without one must be refused. */}}
{{- define "predictors.askEnv" -}}
{{- if include "predictors.keysSecret" . }}
- name: KEYS_ARE_NEEDED
  value: "true"
{{- with .Values.tests.apiKey.secretName }}
- name: API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . | toYaml }}
      key: {{ $.Values.tests.apiKey.key | toYaml }}
{{- end }}
{{- end }}
{{- end }}

{{/* Refusals of combinations that the schema can't express. */}}
{{- define "predictors.refuse.access" -}}
{{- if and .Values.apiKeys.secretName .Values.apiKeys.content -}}
{{- include "predictors.fail" "apiKeys.secretName and apiKeys.content exclude each other: one file has the keys" -}}
{{- end -}}
{{- with .Values.apiKeys.content -}}
{{- if contains "vpk_" . -}}
{{- include "predictors.fail" "apiKeys.content holds a key: it takes the file that `predictors keys` writes, which has digests" -}}
{{- end -}}
{{- $keys := get (fromJson .) "keys" -}}
{{- if not (and (kindIs "slice" $keys) $keys) -}}
{{- include "predictors.fail" "apiKeys.content is no file of keys: {\"keys\": [{\"name\": ..., \"sha256\": ...}]}" -}}
{{- end -}}
{{- range $i, $key := $keys -}}
{{- if not (regexMatch "^[0-9a-f]{64}$" (get ($key | default dict) "sha256" | toString)) -}}
{{- include "predictors.fail" (printf "apiKeys.content: keys[%d].sha256 must be 64 hex digits in lower case" $i) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.clientCaSecretName (not .Values.tls.secretName) -}}
{{- include "predictors.fail" "tls.clientCaSecretName needs tls.secretName: clients show certificates over TLS only" -}}
{{- end -}}
{{- if and .Values.tls.secretName (le (int .Values.health.port) 0) -}}
{{- include "predictors.fail" "tls.secretName needs health.port: the kubelet's probes have no certificate" -}}
{{- end -}}
{{- if and .Values.tls.certificate.enabled (not .Values.tls.secretName) -}}
{{- include "predictors.fail" "tls.certificate.enabled needs tls.secretName: the Secret that cert-manager writes" -}}
{{- end -}}
{{- if and .Values.tls.certificate.enabled (not .Values.tls.certificate.issuerRef) -}}
{{- include "predictors.fail" "tls.certificate.issuerRef is needed: {name: ..., kind: Issuer or ClusterIssuer}" -}}
{{- end -}}
{{- if and .Values.tests.enabled .Values.tls.clientCaSecretName (not .Values.tests.clientCertificateSecretName) -}}
{{- include "predictors.fail" "tests.clientCertificateSecretName is needed by tls.clientCaSecretName: `helm test` calls as a client. Or say tests.enabled false" -}}
{{- end -}}
{{- if and (gt (int .Values.health.port) 0) (eq (int .Values.health.port) (int .Values.metrics.port)) -}}
{{- include "predictors.fail" (printf "health.port and metrics.port are both %d" (int .Values.health.port)) -}}
{{- end -}}
{{- end }}
