{{/* Cluster-wide, so that two releases of one name in two namespaces do not share it. */}}
{{- define "flagtap.injector.webhookName" -}}
{{- /* The digest tells namespaces apart whose names are cut to the same. */}}
{{- $name := printf "%s-injector-%s" (include "flagtap.fullname" .) .Release.Namespace | trunc 54 | trimSuffix "-" }}
{{- printf "%s-%s" $name (.Release.Namespace | sha256sum | trunc 8) }}
{{- end }}

{{/* The injector's template, docs/injector.md: the sidecar as other charts get it, but for where its files come from. */}}
{{- define "flagtap.injector.template" -}}
{{- if and .Values.secrets (eq .Values.mode "none") }}
{{- fail "secrets makes no Secret where the injector stands alone (mode none): injected pods are in other namespaces. Make the Secret in each of those, and name it with existingSecret" }}
{{- end }}
{{- $container := fromYaml (include "flagtap.sidecar.spec" .) }}
{{- with $container.envFrom }}
{{- /* The Secret of the pod's own namespace, if it has one. */}}
{{- $_ := set (index . 0).secretRef "optional" true }}
{{- end }}
url: {{ include "flagtap.sidecar.url" . | quote }}
container:
  {{- toYaml $container | nindent 2 }}
volumes:
  - name: flagtap-config
    downwardAPI:
      items:
        - path: config.yaml
          fieldRef: { fieldPath: "metadata.annotations['flagtap.dev/config']" }
  {{- with include "flagtap.secretName" . }}
  - name: flagtap-secrets
    secret: { secretName: {{ . | quote }}, optional: true }
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- include "flagtap.sidecar.dataVolume" . | nindent 2 }}
annotations:
  flagtap.dev/config: |
    {{- include "flagtap.sidecar.configuration" . | nindent 4 }}
terminationGracePeriodSeconds: {{ include "flagtap.sidecar.gracePeriodSeconds" . }}
{{- end }}
