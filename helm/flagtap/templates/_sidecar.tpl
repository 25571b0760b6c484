{{/*
The sidecar, for the pod specs of other charts. Each takes this chart's own context, which a chart that depends on it has
as .Subcharts.flagtap:

  metadata:
    annotations: {{- include "flagtap.sidecar.annotations" .Subcharts.flagtap | nindent 8 }}
  spec:
    terminationGracePeriodSeconds: {{ include "flagtap.sidecar.gracePeriodSeconds" .Subcharts.flagtap }}
    initContainers: {{- include "flagtap.sidecar.container" .Subcharts.flagtap | nindent 8 }}
    containers:
      - env: [{ name: LD_EVENTS_URI, value: {{ include "flagtap.sidecar.url" .Subcharts.flagtap | quote }} }]
    volumes: {{- include "flagtap.sidecar.volumes" .Subcharts.flagtap | nindent 8 }}

"flagtap.sidecar.annotations" is empty where nothing is to roll the pod (`configChange: reload`, no `secrets`): it can stand below
annotations of your own, and alone it leaves `annotations:` null, which is none; `with` leaves that out too.

With `sidecar.native: false` the container goes below `containers`. "flagtap.sidecar.config" makes the ConfigMap, and the
Secret if there are `secrets`, and is included once, in a file of its own.
*/}}

{{/* One item of `initContainers` (native) or `containers`. */}}
{{- define "flagtap.sidecar.container" -}}
- {{ include "flagtap.sidecar.spec" . | nindent 2 | trim }}
{{- end }}

{{- define "flagtap.sidecar.spec" -}}
{{- if and .Values.sidecar.native (semverCompare "<1.29.0-0" .Capabilities.KubeVersion.Version) }}
{{- fail (printf "sidecar.native needs Kubernetes 1.29; %s drops restartPolicy and waits for the sidecar to end before it starts the application. Set sidecar.native to false" .Capabilities.KubeVersion.Version) }}
{{- end }}
name: flagtap
{{ include "flagtap.container" . }}
{{- if .Values.sidecar.native }}
# Kubernetes starts it before the application and ends it after.
restartPolicy: Always
{{- end }}
args: [serve, --config, /etc/flagtap/config.yaml]
env:
  {{- include "flagtap.env" . | nindent 2 }}
{{- with include "flagtap.secretName" . }}
envFrom:
  - secretRef: { name: {{ . | quote }} }
{{- end }}
ports:
  - { name: flagtap, containerPort: 8030 }
  - { name: flagtap-metrics, containerPort: 8031 }
# The application starts when the relay listens. Its readiness is not the relay's business.
startupProbe:
  httpGet: { path: /readyz, port: flagtap-metrics }
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: { path: /livez, port: flagtap-metrics }
  periodSeconds: 10
  failureThreshold: 6
{{- if not .Values.sidecar.native }}
lifecycle:
  # TERM comes to all containers at once: it is kept back until the application has flushed and ended.
  preStop:
    exec: { command: [/flagtap, wait, {{ .Values.sidecar.applicationSeconds }}s] }
{{- end }}
resources: {{- toYaml (.Values.sidecar.resources | default dict) | nindent 2 }}
securityContext: {{- include "flagtap.securityContext" . | nindent 2 }}
volumeMounts:
  {{- include "flagtap.volumeMounts" . | nindent 2 }}
{{- end }}

{{/* Items of `volumes`. */}}
{{- define "flagtap.sidecar.volumes" -}}
{{ include "flagtap.volumes" (dict "root" . "config" (include "flagtap.sidecar.name" .) "secret" (include "flagtap.secretName" .)) }}
{{ include "flagtap.sidecar.dataVolume" . }}
{{- end }}

{{- define "flagtap.sidecar.dataVolume" -}}
{{- $config := include "flagtap.sidecar.configuration" . }}
{{- with .Values.sidecar.dataVolume }}
{{- $claim := ((((((.ephemeral).volumeClaimTemplate).spec).resources).requests).storage) }}
{{- include "flagtap.fits" (dict "name" "the claim of sidecar.dataVolume" "size" $claim "config" $config) }}
{{- include "flagtap.fits" (dict "name" "sidecar.dataVolume.emptyDir.sizeLimit" "size" ((.emptyDir).sizeLimit) "config" $config) }}
{{- else }}
{{- include "flagtap.fits" (dict "name" "sidecar.dataSize" "size" .Values.sidecar.dataSize "config" $config) }}
{{- end -}}
- name: flagtap-data
  {{- with .Values.sidecar.dataVolume }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.sidecar.dataSize }}
  {{- end }}
{{- end }}

{{/* Annotations of the pod: a changed configuration restarts it unless it is reloaded. Empty where there are none. */}}
{{- define "flagtap.sidecar.annotations" -}}
{{- include "flagtap.checksums" (dict "root" . "config" (include "flagtap.sidecar.configuration" .)) }}
{{- end }}

{{/* terminationGracePeriodSeconds of the pod: the application's end, and then flagtap's. */}}
{{- define "flagtap.sidecar.gracePeriodSeconds" -}}
{{- add (int .Values.sidecar.applicationSeconds) (int .Values.gracePeriodSeconds) }}
{{- end }}

{{- define "flagtap.sidecar.name" -}}
{{ include "flagtap.fullname" . }}-sidecar
{{- end }}

{{/* Where a sidecar listens unless told otherwise: only its own pod reaches it. */}}
{{- define "flagtap.sidecar.listen" -}}
127.0.0.1:8030
{{- end }}

{{/* What the SDKs' events URI is set to, from within the pod. */}}
{{- define "flagtap.sidecar.url" -}}
{{- $listen := include "flagtap.listen" (dict "root" . "default" (include "flagtap.sidecar.listen" .)) | fromYaml }}
{{- /* Every address includes the loopback's; a variable is known to the pod alone. */}}
{{- $address := $listen.address | replace "0.0.0.0" "127.0.0.1" | replace "[::]" "[::1]" }}
{{- if contains "${" $address }}
{{- fail "config.listen is a variable, so the address that SDKs send to is not known; write it out" }}
{{- end }}
{{- printf "%s://%s" (include "flagtap.scheme" .) $address }}
{{- end }}

{{/* config.yaml of a sidecar. */}}
{{- define "flagtap.sidecar.configuration" -}}
{{- $base := dict "listen" (include "flagtap.sidecar.listen" .) "queue" (dict "max_bytes" "512MiB" "sled" (dict "path" "/data/queue")) }}
{{- include "flagtap.config" (dict "root" . "base" $base) }}
{{- end }}

{{- define "flagtap.sidecar.config" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "flagtap.sidecar.name" . }}
  labels: {{- include "flagtap.labels" . | nindent 4 }}
data:
  config.yaml: |
    {{- include "flagtap.sidecar.configuration" . | nindent 4 }}
{{- if and .Values.secrets (eq .Values.mode "none") }}
---
{{ include "flagtap.secret" . }}
{{- end }}
{{- end }}
